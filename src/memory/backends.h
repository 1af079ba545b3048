// The constructors that open.cpp's table names, one a backend. Errors: invalid (the address), unavailable.
#pragma once

#include "memory/address.h"
#include "memory/records.h"

namespace parallm {

std::unique_ptr<Records> open_files(Address& address);
std::unique_ptr<Records> open_faiss(Address& address);
std::unique_ptr<Records> open_sqlite(Address& address);
std::unique_ptr<Records> open_postgres(Address& address);
std::unique_ptr<Records> open_redis(Address& address);
std::unique_ptr<Records> open_neo4j(Address& address);

} // namespace parallm
