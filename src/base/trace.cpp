#include "base/trace.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>

namespace parallm::trace {

namespace {

using Clock = std::chrono::steady_clock;

/** Where lines go; null: nowhere. Never closed, as threads may outlive static
 * objects: exit() writes what the stream holds, and viewers take a list without
 * its end. */
std::FILE* open_file() {
  const char* path = std::getenv("MLX_PARALLM_TRACE");
  if (path == nullptr || *path == 0) {
    return nullptr;
  }
  std::FILE* file = std::fopen(path, "w");
  if (file == nullptr) {
    spdlog::warn("MLX_PARALLM_TRACE: {} can't be written, so there is no trace", path);
    return nullptr;
  }
  std::fputs("[\n", file);
  return file;
}

std::FILE* file() {
  static std::FILE* const one = open_file();
  return one;
}

const Clock::time_point start = Clock::now();
std::atomic<int> threads = 0;

int this_thread() {
  thread_local const int number = ++threads;
  return number;
}

void write(const std::string& line) {
  std::fwrite(line.data(), 1, line.size(), file()); // a stream has a lock
}

double microseconds(Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

} // namespace

bool on() {
  return file() != nullptr;
}

void name_thread(const char* name) {
  if (on()) {
    write(fmt::format(
        R"({{"ph":"M","pid":1,"tid":{},"name":"thread_name","args":{{"name":"{}"}}}},)"
        "\n",
        this_thread(),
        name));
  }
}

void Span::finish() const {
  const auto end = Clock::now();
  std::string notes;
  for (int i = 0; i < notes_; ++i) {
    fmt::format_to(std::back_inserter(notes), R"({}"{}":{})", i ? "," : "", keys_[i], values_[i]);
  }
  write(fmt::format(
      R"({{"ph":"X","pid":1,"tid":{},"name":"{}","ts":{:.3f},"dur":{:.3f},"args":{{{}}}}},)"
      "\n",
      this_thread(),
      name_,
      microseconds(start_ - start),
      microseconds(end - start_),
      notes));
}

} // namespace parallm::trace
