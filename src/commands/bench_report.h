// Markdown as it grows: on standard output at once, and kept for a file. One thread.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <string>
#include <vector>

namespace parallm {

class Report {
 public:
  template <typename... Args>
  void say(fmt::format_string<Args...> text, Args&&... args) {
    const std::string line = fmt::format(text, std::forward<Args>(args)...) + "\n";
    text_ += line;
    fmt::print("{}", line);
    std::fflush(stdout);
  }

  /** The head of a table. */
  void columns(const std::vector<std::string>& names) {
    say("\n| {} |", fmt::join(names, " | "));
    say("| {} |", fmt::join(std::vector<std::string>(names.size(), "---"), " | "));
  }

  const std::string& text() const {
    return text_;
  }

 private:
  std::string text_;
};

} // namespace parallm
