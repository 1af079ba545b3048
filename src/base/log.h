// The process's log: lines on standard error. Any thread may write; set_log is
// for the start of main.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

namespace parallm {

/** `level`: trace, debug, info, warning, error, off. Errors: invalid. */
void set_log(std::string_view level);

} // namespace parallm
