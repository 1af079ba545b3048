// A document as JSON, for backends that keep records as text. Free functions, any thread.
#pragma once

#include "memory/store.h"

#include <string>
#include <string_view>
#include <vector>

namespace parallm {

/** All but contents and embedding. */
json::object record_json(const Document& document);

/** Its inverse. Errors: internal, where it is no such object. */
Document record_of(const json::value& value);

/** {"text", "token_ids"} as text. */
std::string contents_json(const Document& document);

/** Sets text and token_ids of what contents_json wrote. Errors: internal. */
void read_contents(std::string_view text, Document& document);

/** Floats as their little-endian bytes, and back. */
std::string_view vector_bytes(const std::vector<float>& vector);
std::vector<float> vector_of(std::string_view bytes);
/** The same of token ids. */
std::string_view ids_bytes(const std::vector<int32_t>& ids);
std::vector<int32_t> ids_of(std::string_view bytes);

/** RFC 4648; what is not its alphabet ends the decoding. */
std::string base64(std::string_view bytes);
std::string from_base64(std::string_view text);

} // namespace parallm
