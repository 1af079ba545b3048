#include "models/config.h"

#include "base/error.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <limits>

namespace parallm {
namespace json = boost::json;

namespace {

[[noreturn]] void
wrong_type(const std::string& where, std::string_view name, const char* wanted, const json::value& got) {
  auto text = json::serialize(got);
  if (text.size() > 80) {
    text = text.substr(0, 80) + "...";
  }
  fail(Kind::invalid, "[{}] '{}' must be {}; got {}", where, name, wanted, text);
}

int to_integer(const std::string& where, std::string_view name, const json::value& value) {
  boost::system::error_code error;
  auto number = value.to_number<int32_t>(error); // exact, or an error
  if (error) {
    wrong_type(where, name, "a 32-bit integer", value);
  }
  return number;
}

double to_double(const std::string& where, std::string_view name, const json::value& value) {
  // transformers 5 writes what JSON has no number for as an object.
  if (auto* object = value.if_object(); object && object->size() == 1 && object->contains("__float__")) {
    if (object->at("__float__") == "Infinity") {
      return std::numeric_limits<double>::infinity();
    }
    if (object->at("__float__") == "-Infinity") {
      return -std::numeric_limits<double>::infinity();
    }
  }
  if (!value.is_number()) {
    wrong_type(where, name, "a number", value);
  }
  return value.to_number<double>();
}

/** Python's json writes Infinity and NaN, which are no JSON: as a number that is
 * beyond all doubles, and as null. */
std::string without_infinity(std::string text) {
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') {
      quoted = !quoted;
    } else if (text[i] == '\\') {
      ++i;
    } else if (!quoted && text.compare(i, 8, "Infinity") == 0) {
      text.replace(i, 8, "1e999");
    } else if (!quoted && text.compare(i, 3, "NaN") == 0) {
      text.replace(i, 3, "null");
    }
  }
  return text;
}

const json::array& to_array(const std::string& where, std::string_view name, const json::value& value) {
  if (!value.is_array()) {
    wrong_type(where, name, "a list", value);
  }
  return value.get_array();
}

} // namespace

bool Config::has(std::string_view name) const {
  auto* value = json.if_contains(name);
  return value && !value->is_null();
}

const json::value& Config::at(std::string_view name) const {
  if (!has(name)) {
    fail(Kind::invalid, "[{}] '{}' is missing", where, name);
  }
  return *json.if_contains(name);
}

int Config::integer(std::string_view name) const {
  return to_integer(where, name, at(name));
}

int Config::integer(std::string_view name, int fallback) const {
  return has(name) ? integer(name) : fallback;
}

int Config::count(std::string_view name) const {
  auto value = integer(name);
  if (value <= 0) {
    wrong_type(where, name, "above 0", at(name));
  }
  return value;
}

int Config::count(std::string_view name, int fallback) const {
  return has(name) ? count(name) : fallback;
}

double Config::number(std::string_view name) const {
  return to_double(where, name, at(name));
}

double Config::number(std::string_view name, double fallback) const {
  return has(name) ? number(name) : fallback;
}

bool Config::boolean(std::string_view name, bool fallback) const {
  if (!has(name)) {
    return fallback;
  }
  auto& value = at(name);
  if (!value.is_bool()) {
    wrong_type(where, name, "true or false", value);
  }
  return value.get_bool();
}

std::string Config::text(std::string_view name) const {
  auto& value = at(name);
  if (!value.is_string()) {
    wrong_type(where, name, "a string", value);
  }
  return std::string(value.get_string());
}

std::string Config::text(std::string_view name, std::string fallback) const {
  return has(name) ? text(name) : std::move(fallback);
}

std::vector<std::string> Config::texts(std::string_view name) const {
  std::vector<std::string> out;
  for (auto& item : to_array(where, name, at(name))) {
    if (!item.is_string()) {
      wrong_type(where, name, "a list of strings", item);
    }
    out.emplace_back(item.get_string());
  }
  return out;
}

std::vector<double> Config::numbers(std::string_view name) const {
  std::vector<double> out;
  for (auto& item : to_array(where, name, at(name))) {
    out.push_back(to_double(where, name, item));
  }
  return out;
}

std::vector<int> Config::integers(std::string_view name) const {
  std::vector<int> out;
  if (!has(name)) {
    return out;
  }
  auto& value = at(name);
  if (!value.is_array()) {
    return {to_integer(where, name, value)};
  }
  for (auto& item : value.get_array()) {
    out.push_back(to_integer(where, name, item));
  }
  return out;
}

Config Config::object(std::string_view name) const {
  auto& value = at(name);
  if (!value.is_object()) {
    wrong_type(where, name, "an object", value);
  }
  return {value.get_object(), where + ": " + std::string(name)};
}

std::vector<Config> Config::objects(std::string_view name) const {
  std::vector<Config> out;
  for (auto& item : to_array(where, name, at(name))) {
    if (!item.is_object()) {
      wrong_type(where, name, "a list of objects", item);
    }
    out.push_back({item.get_object(), where + ": " + std::string(name)});
  }
  return out;
}

Config with_defaults(Config config, const json::object& defaults) {
  for (auto& [name, value] : defaults) {
    if (!config.has(name)) {
      config.json.insert_or_assign(name, value);
    }
  }
  return config;
}

Config with_names(Config config, const std::vector<std::pair<std::string, std::string>>& names) {
  for (auto& [common, own] : names) {
    if (!config.has(common) && config.has(own)) {
      json::value value = config.json.at(own);
      config.json.insert_or_assign(common, std::move(value));
    }
  }
  return config;
}

Config read_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    fail(Kind::invalid, "[read_config] cannot open {}", path);
  }
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  boost::system::error_code error;
  auto value = json::parse(without_infinity(std::move(text)), error);
  if (error) {
    fail(Kind::invalid, "[read_config] {} is not JSON: {}", path, error.message());
  }
  if (!value.is_object()) {
    fail(Kind::invalid, "[read_config] {} holds no JSON object", path);
  }
  return {std::move(value.get_object()), std::filesystem::path(path).filename().string()};
}

} // namespace parallm
