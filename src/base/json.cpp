#include "base/json.h"

#include "base/error.h"

#include <boost/json/src.hpp>

#include <array>
#include <charconv>
#include <cmath>
#include <cstdlib>

namespace parallm {

namespace {

void write(const json::value& value, std::string& out);

void write_number(double number, std::string& out) {
  if (!std::isfinite(number)) { // JSON has no such number
    out += "null";
    return;
  }
  std::array<char, 32> text;
  const auto end = std::to_chars(text.data(), text.data() + text.size(), number).ptr;
  const std::string_view digits(text.data(), end - text.data());
  out += digits;
  if (digits.find_first_of(".e") == std::string_view::npos) {
    out += ".0"; // so that readers see no integer
  }
}

void write_members(const json::object& object, std::string& out) {
  char before = '{';
  for (const auto& [key, value] : object) {
    out += before;
    out += json::serialize(key);
    out += ':';
    write(value, out);
    before = ',';
  }
  out += object.empty() ? "{}" : "}";
}

void write_items(const json::array& array, std::string& out) {
  char before = '[';
  for (const json::value& value : array) {
    out += before;
    write(value, out);
    before = ',';
  }
  out += array.empty() ? "[]" : "]";
}

void write(const json::value& value, std::string& out) {
  if (const auto* object = value.if_object()) {
    write_members(*object, out);
  } else if (const auto* array = value.if_array()) {
    write_items(*array, out);
  } else if (const auto* number = value.if_double()) {
    write_number(*number, out);
  } else {
    out += json::serialize(value);
  }
}

} // namespace

std::string json_text(const json::value& value) {
  std::string out;
  write(value, out);
  return out;
}

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
    fail(Kind::invalid, "[json] the {} is not valid JSON: {} at byte {}", what, error.message(), used);
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

} // namespace parallm
