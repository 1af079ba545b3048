#include "base/file.h"

#include "base/error.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace parallm {

std::string read_file(const std::string& path) {
  if (std::filesystem::is_directory(path)) {
    fail(Kind::invalid, "[read_file] {} is a folder", path);
  }
  std::ifstream in(path, std::ios::binary);
  std::ostringstream bytes;
  bytes << in.rdbuf();
  if (!in || in.bad()) {
    fail(Kind::invalid, "[read_file] can't read {}: {}", path, std::strerror(errno));
  }
  return std::move(bytes).str();
}

} // namespace parallm
