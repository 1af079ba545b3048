// Small files, whole.
#pragma once

#include <string>

namespace parallm {

/** A file's bytes. Errors: invalid, naming the path and the system's reason. */
std::string read_file(const std::string& path);

} // namespace parallm
