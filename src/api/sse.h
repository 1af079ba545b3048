// Server-sent events (WHATWG HTML, 9.2) as OpenAI uses them: unnamed events of
// one JSON line, then "[DONE]".
#pragma once

#include "base/json.h"

#include <string>

namespace parallm {

inline std::string sse(const json::value& data) {
  return "data: " + json_text(data) + "\n\n";
}

inline constexpr const char* sse_done = "data: [DONE]\n\n";

} // namespace parallm
