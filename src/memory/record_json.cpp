#include "memory/record_json.h"

#include "base/error.h"

#include <bit>
#include <cstring>

namespace parallm {

static_assert(std::endian::native == std::endian::little, "vectors are written as they lie in memory");

namespace {

constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

const json::value& field(const json::object& object, const char* name) {
  const json::value* found = object.if_contains(name);
  if (found == nullptr) {
    fail(Kind::internal, "[memory] a record has no {}", name);
  }
  return *found;
}

std::string text_field(const json::object& object, const char* name) {
  const json::value& value = field(object, name);
  check(value.is_string(), "a text of a record is a string");
  return std::string(value.get_string());
}

template <typename Integer>
Integer number_field(const json::object& object, const char* name) {
  const json::value& value = field(object, name);
  check(value.is_number(), "a number of a record is a number");
  return value.to_number<Integer>();
}

json::object object_field(const json::object& object, const char* name) {
  const json::value& value = field(object, name);
  check(value.is_object(), "an object of a record is an object");
  return value.get_object();
}

} // namespace

json::object record_json(const Document& document) {
  return {
      {"namespace", document.space},
      {"id", document.id},
      {"uid", document.uid},
      {"created", document.created},
      {"tokens", document.tokens},
      {"metadata", document.metadata},
      {"options", document.options},
      {"header", document.header},
      {"fingerprint", document.fingerprint}};
}

Document record_of(const json::value& value) {
  check(value.is_object(), "a record is an object");
  const json::object& object = value.get_object();
  Document document;
  document.space = text_field(object, "namespace");
  document.id = text_field(object, "id");
  document.uid = text_field(object, "uid");
  document.created = number_field<int64_t>(object, "created");
  document.tokens = number_field<uint64_t>(object, "tokens");
  document.metadata = object_field(object, "metadata");
  document.options = object_field(object, "options");
  document.header = text_field(object, "header");
  document.fingerprint = text_field(object, "fingerprint");
  return document;
}

std::string contents_json(const Document& document) {
  return json::serialize(json::object{{"text", document.text}, {"token_ids", json::value_from(document.token_ids)}});
}

void read_contents(std::string_view text, Document& document) {
  const json::value value = parse_json(text, "contents of a memory");
  check(value.is_object(), "contents are an object");
  document.text = text_field(value.get_object(), "text");
  const json::value& ids = field(value.get_object(), "token_ids");
  check(ids.is_array(), "token ids are an array");
  document.token_ids = json::value_to<std::vector<int32_t>>(ids);
}

namespace {

template <typename Number>
std::string_view bytes_of(const std::vector<Number>& numbers) {
  return {reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(Number)};
}

template <typename Number>
std::vector<Number> numbers_of(std::string_view bytes) {
  std::vector<Number> numbers(bytes.size() / sizeof(Number));
  if (!numbers.empty()) {
    std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(Number));
  }
  return numbers;
}

} // namespace

std::string_view vector_bytes(const std::vector<float>& vector) {
  return bytes_of(vector);
}

std::vector<float> vector_of(std::string_view bytes) {
  return numbers_of<float>(bytes);
}

std::string_view ids_bytes(const std::vector<int32_t>& ids) {
  return bytes_of(ids);
}

std::vector<int32_t> ids_of(std::string_view bytes) {
  return numbers_of<int32_t>(bytes);
}

std::string base64(std::string_view bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t n = std::min<size_t>(3, bytes.size() - i);
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j) {
      bits = bits << 8 | (j < n ? static_cast<unsigned char>(bytes[i + j]) : 0);
    }
    for (size_t j = 0; j < 4; ++j) {
      text += j <= n ? alphabet[bits >> (18 - 6 * j) & 63] : '=';
    }
  }
  return text;
}

std::string from_base64(std::string_view text) {
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const size_t digit = alphabet.find(c);
    if (digit == alphabet.npos) {
      break;
    }
    bits = bits << 6 | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes += static_cast<char>(bits >> count & 255);
    }
  }
  return bytes;
}

} // namespace parallm
