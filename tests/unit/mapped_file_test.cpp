#include "base/mapped_file.h"

#include "base/error.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

namespace parallm::test {
namespace fs = std::filesystem;

namespace {

std::string message(const std::string& path) {
  try {
    MappedFile file(path);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

} // namespace

TEST_CASE("mapped_file: the bytes, also after they were dropped and the file is gone") {
  auto path = (fs::temp_directory_path() / ("parallm_mapped_" + std::to_string(::getpid()))).string();
  std::string text;
  for (int i = 0; i < 20000; ++i) {
    text += std::to_string(i) + " ";
  }
  std::ofstream(path, std::ios::binary) << text;
  MappedFile file(path);
  fs::remove(path);
  REQUIRE(file.size() == text.size());
  CHECK(file.text(0, file.size()) == text);
  file.drop(5, 50000);
  file.drop(0, file.size());
  file.expect(100, 70000);
  CHECK(file.text(0, file.size()) == text);
  CHECK(file.text(12, 7) == text.substr(12, 7));
}

TEST_CASE("mapped_file: what can't be mapped is an error with its name") {
  CHECK(message("/no/such/file").find("cannot open /no/such/file: No such file") != std::string::npos);
  CHECK(message("/").find("is no plain file") != std::string::npos);
  auto path = (fs::temp_directory_path() / ("parallm_empty_" + std::to_string(::getpid()))).string();
  std::ofstream(path, std::ios::binary).flush();
  CHECK(message(path).find("is empty (an incomplete download?)") != std::string::npos);
  fs::remove(path);
}

} // namespace parallm::test
