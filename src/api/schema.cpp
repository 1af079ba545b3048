#include "api/schema.h"

#include "base/error.h"
#include "text/tokenizer.h"

#include <charconv>
#include <cmath>
#include <random>

namespace parallm {

namespace {

constexpr double exact = 9007199254740992.0; // 2^53: doubles above skip integers

[[noreturn]] void wrong(const std::string& field, std::string_view wanted, const json::value& got) {
  fail_field(field, "[{}] must be {}; got {} ({})", field, wanted, json_excerpt(got), json_kind(got));
}

double read_number(const json::value& value, const std::string& field, double min, double max, bool min_open) {
  if (!value.is_number()) {
    wrong(field, "a number", value);
  }
  double x = value.to_number<double>();
  if (!std::isfinite(x) || x < min || x > max || (min_open && x == min)) {
    fail_field(
        field,
        "[{}] must be {} {} and at most {}; got {}",
        field,
        min_open ? "above" : "at least",
        min,
        max,
        json_excerpt(value));
  }
  return x;
}

bool asks_for_nothing(const json::value& value) {
  switch (value.kind()) {
    case json::kind::null:
      return true;
    case json::kind::bool_:
      return !value.get_bool();
    case json::kind::string:
      return value.get_string().empty();
    case json::kind::array:
      return value.get_array().empty();
    case json::kind::object:
      return value.get_object().empty();
    default:
      return value.to_number<double>() == 0;
  }
}

// A key of logit_bias: a token id in decimal, or (as the old server took) a
// vocabulary entry.
int32_t bias_token(std::string_view key, const Tokenizer& tokenizer, int vocabulary) {
  int64_t id = -1;
  auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
  bool decimal = error == std::errc() && end == key.data() + key.size();
  if (!decimal) {
    id = tokenizer.id(key);
  }
  if (id < 0 || id >= vocabulary) {
    fail_field("logit_bias", "[logit_bias] keys are token ids below {}; got \"{}\"", vocabulary, key.substr(0, 60));
  }
  return static_cast<int32_t>(id);
}

} // namespace

Fields::Fields(const json::object& object, std::string where) : object_(object), where_(std::move(where)) {}

std::string Fields::name(std::string_view field) const {
  return where_ + std::string(field);
}

const json::value* Fields::any(std::string_view name) {
  known_.insert(name);
  const json::value* value = object_.if_contains(name);
  return value && !value->is_null() ? value : nullptr;
}

std::optional<bool> Fields::boolean(std::string_view field) {
  const json::value* value = any(field);
  if (!value) {
    return std::nullopt;
  }
  if (!value->is_bool()) {
    wrong(name(field), "true or false", *value);
  }
  return value->get_bool();
}

std::optional<int64_t> Fields::integer(std::string_view field, int64_t min, int64_t max) {
  const json::value* value = any(field);
  if (!value) {
    return std::nullopt;
  }
  return read_integer(*value, name(field), min, max);
}

std::optional<double> Fields::number(std::string_view field, double min, double max, bool min_open) {
  const json::value* value = any(field);
  if (!value) {
    return std::nullopt;
  }
  return read_number(*value, name(field), min, max, min_open);
}

std::optional<std::string> Fields::string(std::string_view field) {
  const json::value* value = any(field);
  if (!value) {
    return std::nullopt;
  }
  if (!value->is_string()) {
    wrong(name(field), "a string", *value);
  }
  return std::string(value->get_string());
}

const json::object* Fields::object(std::string_view field) {
  const json::value* value = any(field);
  if (value && !value->is_object()) {
    wrong(name(field), "an object", *value);
  }
  return value ? &value->get_object() : nullptr;
}

const json::array* Fields::array(std::string_view field) {
  const json::value* value = any(field);
  if (value && !value->is_array()) {
    wrong(name(field), "an array", *value);
  }
  return value ? &value->get_array() : nullptr;
}

void Fields::accept(std::initializer_list<std::string_view> names) {
  known_.insert(names);
}

void Fields::refuse(std::initializer_list<std::string_view> names) {
  for (std::string_view field : names) {
    const json::value* value = any(field);
    if (value && !asks_for_nothing(*value)) {
      fail_field(name(field), "[{}] is not supported; got {}", name(field), json_excerpt(*value));
    }
  }
}

std::vector<std::string> Fields::unknown() const {
  std::vector<std::string> names;
  for (const auto& field : object_) {
    if (!known_.contains(field.key())) {
      names.push_back(name(field.key()));
    }
  }
  return names;
}

void Fields::refuse_unknown() const {
  if (const auto names = unknown(); !names.empty()) {
    fail_field(names[0], "[{}] is not a known field", names[0]);
  }
}

int64_t read_integer(const json::value& value, const std::string& field, int64_t min, int64_t max) {
  int64_t x = 0;
  bool fits = true;
  if (value.is_int64()) {
    x = value.get_int64();
  } else if (value.is_double()) {
    double d = value.get_double();
    if (!(std::abs(d) <= exact) || d != std::floor(d)) {
      wrong(field, "an integer", value);
    }
    x = static_cast<int64_t>(d);
  } else if (value.is_uint64()) { // only where it is over int64's range
    fits = false;
  } else {
    wrong(field, "an integer", value);
  }
  if (!fits || x < min || x > max) {
    fail_field(field, "[{}] must be at least {} and at most {}; got {}", field, min, max, json_excerpt(value));
  }
  return x;
}

std::vector<int32_t> read_ids(const json::array& array, const std::string& field, int vocabulary) {
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (size_t i = 0; i < array.size(); ++i) {
    const json::value& value = array[i];
    // The name is built only for an error: prompts are long.
    if (value.is_int64() && value.get_int64() >= 0 && value.get_int64() < vocabulary) {
      ids.push_back(static_cast<int32_t>(value.get_int64()));
    } else {
      ids.push_back(static_cast<int32_t>(read_integer(value, fmt::format("{}[{}]", field, i), 0, vocabulary - 1)));
    }
  }
  return ids;
}

Sampling read_sampling(Fields& fields, const Sampling& defaults, const Tokenizer& tokenizer, int vocabulary) {
  Sampling sampling = defaults;
  for (const SamplingField& field : sampling_fields()) {
    if (auto real = std::get_if<float Sampling::*>(&field.member)) {
      auto x = fields.number(field.name, field.min, field.max, field.min_open);
      if (x) {
        sampling.*(*real) = static_cast<float>(*x);
      }
    } else if (const json::value* value = fields.any(field.name)) {
      // vLLM's clients write "no limit" as -1.
      bool off = field.name == "top_k" && value->is_int64() && value->get_int64() == -1;
      sampling.*std::get<int Sampling::*>(field.member) = off ? 0 : *fields.integer(field.name, field.min, field.max);
    }
  }
  if (const json::object* bias = fields.object("logit_bias")) {
    for (const auto& [key, value] : *bias) {
      int32_t id = bias_token(key, tokenizer, vocabulary);
      double b = read_number(value, "logit_bias", -100, 100, false);
      sampling.logit_bias.emplace_back(id, static_cast<float>(b));
    }
  }
  if (const json::array* ids = fields.array("stop_token_ids")) {
    sampling.stop_token_ids = read_ids(*ids, "stop_token_ids", vocabulary);
  }
  sampling.ignore_eos = fields.boolean("ignore_eos").value_or(sampling.ignore_eos);
  if (auto seed = fields.integer("seed")) {
    sampling.seed = static_cast<uint64_t>(*seed);
  } else {
    std::random_device device;
    sampling.seed = uint64_t{device()} << 32 | device();
  }
  return sampling;
}

std::vector<std::string> read_stops(Fields& fields) {
  constexpr size_t most = 16;
  std::vector<std::string> stops;
  const json::value* value = fields.any("stop");
  if (!value) {
    return stops;
  }
  if (value->is_string()) {
    stops.emplace_back(value->get_string());
  } else if (value->is_array()) {
    for (const json::value& stop : value->get_array()) {
      if (!stop.is_string()) {
        wrong("stop", "a string or an array of strings", stop);
      }
      stops.emplace_back(stop.get_string());
    }
  } else {
    wrong("stop", "a string or an array of strings", *value);
  }
  if (stops.size() > most) {
    fail_field("stop", "[stop] holds at most {} strings; got {}", most, stops.size());
  }
  // An empty stop string stands everywhere; OpenAI's clients send "" for none.
  std::erase(stops, "");
  return stops;
}

uint64_t choice_seed(uint64_t seed, uint64_t index) {
  // splitmix64 (Steele, Lea, Flood 2014).
  uint64_t x = seed + (index + 1) * 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

} // namespace parallm
