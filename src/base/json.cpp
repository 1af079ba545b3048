#include "base/json.h"

#include "base/error.h"

#include <boost/json/src.hpp>

#include <cstdlib>

namespace parallm {

namespace {

// Bytes of the UTF-8 character that begins `text`, 0 where none does (Unicode
// 15, table 3-7).
size_t character(std::string_view text) {
  auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  auto tail = [&](size_t i, unsigned low = 0x80, unsigned high = 0xBF) {
    return byte(i) >= low && byte(i) <= high;
  };
  unsigned b = byte(0);
  if (b < 0x80) {
    return 1;
  }
  if (b >= 0xC2 && b <= 0xDF) {
    return tail(1) ? 2 : 0;
  }
  if (b >= 0xE0 && b <= 0xEF) {
    bool second = tail(1, b == 0xE0 ? 0xA0 : 0x80, b == 0xED ? 0x9F : 0xBF);
    return second && tail(2) ? 3 : 0;
  }
  if (b >= 0xF0 && b <= 0xF4) {
    bool second = tail(1, b == 0xF0 ? 0x90 : 0x80, b == 0xF4 ? 0x8F : 0xBF);
    return second && tail(2) && tail(3) ? 4 : 0;
  }
  return 0;
}

} // namespace

json::value parse_json(std::string_view text, std::string_view what) {
  json::parse_options options;
  options.max_depth = 128; // JSON schemas nest; deeper bodies are an attack
  json::stream_parser parser({}, options);
  boost::system::error_code error;
  size_t used = parser.write_some(text.data(), text.size(), error);
  if (!error && used < text.size()) {
    error = json::error::extra_data;
  }
  if (!error) {
    parser.finish(error);
  }
  if (error) {
    fail(
        Kind::invalid,
        "[json] the {} is not valid JSON: {} at byte {}",
        what,
        error.message(),
        used);
  }
  return parser.release();
}

std::string_view json_kind(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return "null";
    case json::kind::bool_:
      return "a boolean";
    case json::kind::int64:
    case json::kind::uint64:
      return "an integer";
    case json::kind::double_:
      return "a number";
    case json::kind::string:
      return "a string";
    case json::kind::array:
      return "an array";
    default:
      return "an object";
  }
}

std::string json_excerpt(const json::value& value, size_t limit) {
  if (value.is_array() || value.is_object()) {
    return std::string(json_kind(value)); // may be huge: not serialized
  }
  std::string text = json::serialize(value);
  if (text.size() <= limit) {
    return text;
  }
  size_t end = limit;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) {
    --end;
  }
  return text.substr(0, end) + "...";
}

double shortest(float value) {
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

std::string valid_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    size_t length = character(text);
    if (length == 0) {
      out += "\uFFFD";
      text.remove_prefix(1);
    } else {
      out += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return out;
}

} // namespace parallm
