#include "base/log.h"

#include "base/error.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include <array>

namespace parallm {

void set_log(std::string_view level) {
  static constexpr std::array known = {"trace", "debug", "info", "warning", "error", "off"};
  for (const char* name : known) {
    if (level == name) {
      auto log = spdlog::stderr_color_mt("mlx_parallm");
      log->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$ %v");
      log->set_level(spdlog::level::from_str(name));
      spdlog::set_default_logger(std::move(log));
      return;
    }
  }
  fail_field("log-level", "[log] unknown level; got {}", level);
}

} // namespace parallm
