#include "base/error.h"
#include "models/gguf_reader.h"

#include <limits>

namespace parallm {

void GgufMetadata::wrong(const std::string& key, const char* wanted) {
  fail(Kind::invalid, "[gguf] '{}' must be {}", key, wanted);
}

const GgufValue& GgufMetadata::at(const std::string& key) const {
  auto found = values_.find(key);
  if (found == values_.end()) {
    fail(Kind::invalid, "[gguf] '{}' is missing", key);
  }
  return found->second;
}

std::string GgufMetadata::text(const std::string& key) const {
  auto* value = std::get_if<std::string>(&at(key));
  if (!value) {
    wrong(key, "a string");
  }
  return *value;
}

std::string GgufMetadata::text(const std::string& key, std::string fallback) const {
  return has(key) ? text(key) : fallback;
}

bool GgufMetadata::boolean(const std::string& key, bool fallback) const {
  if (!has(key)) {
    return fallback;
  }
  auto* value = std::get_if<bool>(&at(key));
  if (!value) {
    wrong(key, "true or false");
  }
  return *value;
}

int GgufMetadata::integer(const std::string& key) const {
  auto values = integers(key);
  at(key); // absent: an error
  if (values.size() != 1 || values[0] < std::numeric_limits<int>::min() ||
      values[0] > std::numeric_limits<int>::max()) {
    wrong(key, "one 32-bit integer");
  }
  return values[0];
}

int GgufMetadata::integer(const std::string& key, int fallback) const {
  return has(key) ? integer(key) : fallback;
}

double GgufMetadata::number(const std::string& key) const {
  auto values = numbers(key);
  at(key);
  if (values.size() != 1) {
    wrong(key, "one number");
  }
  return values[0];
}

std::vector<int64_t> GgufMetadata::integers(const std::string& key) const {
  if (!has(key)) {
    return {};
  }
  auto& value = at(key);
  if (auto* one = std::get_if<int64_t>(&value)) {
    return {*one};
  }
  if (auto* list = std::get_if<std::vector<int64_t>>(&value)) {
    return *list;
  }
  wrong(key, "an integer or a list of them");
}

std::vector<double> GgufMetadata::numbers(const std::string& key) const {
  if (!has(key)) {
    return {};
  }
  auto& value = at(key);
  if (auto* one = std::get_if<double>(&value)) {
    return {*one};
  }
  if (auto* list = std::get_if<std::vector<double>>(&value)) {
    return *list;
  }
  auto whole = integers(key);
  return {whole.begin(), whole.end()};
}

std::vector<std::string> GgufMetadata::texts(const std::string& key) const {
  if (!has(key)) {
    return {};
  }
  auto* list = std::get_if<std::vector<std::string>>(&at(key));
  if (!list) {
    wrong(key, "a list of strings");
  }
  return *list;
}

} // namespace parallm
