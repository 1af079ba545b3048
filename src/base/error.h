// The one error type. It says what kind of failure it is (which maps one to one to an HTTP status and an OpenAI error
// body), which request field it is about, and a text of the form "[where] what is wrong; got X".
// It is thrown, and caught in three places: api/server.cpp, engine/engine.cpp and the main programs.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace parallm {

enum class Kind {
  invalid, // 400: the caller's input is wrong
  unauthorized, // 401
  not_found, // 404
  conflict, // 409
  too_large, // 413: the body is over the limit
  busy, // 429: the queue is full, try again
  internal, // 500: our fault
  unavailable, // 503: not ready, or shutting down
  timeout, // 504
};

struct Error : std::runtime_error {
  Error(Kind kind, std::string param, const std::string& text)
      : std::runtime_error(text), kind(kind), param(std::move(param)) {}

  Kind kind;
  std::string param; // the request field's name, empty where the error is about none
  std::string code; // OpenAI's error code, where clients look for one ("context_length_exceeded")
};

template <typename... Args>
[[noreturn]] void fail(Kind kind, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(kind, "", fmt::format(text, std::forward<Args>(args)...));
}

/** A malformed or out-of-range request field: 400 naming it. */
template <typename... Args>
[[noreturn]] void fail_field(std::string field, fmt::format_string<Args...> text, Args&&... args) {
  throw Error(Kind::invalid, std::move(field), fmt::format(text, std::forward<Args>(args)...));
}

/** A broken invariant of our own. */
inline void check(bool holds, const char* what) {
  if (!holds) {
    fail(Kind::internal, "[check] {}", what);
  }
}

} // namespace parallm
