#include "memory/filter.h"

#include "base/error.h"

#include <algorithm>

namespace parallm {

namespace {

using Op = Condition::Op;

constexpr size_t most_conditions = 64, most_values = 256;

struct Name {
  const char* name;
  Op op;
};

constexpr Name operators[] = {
    {"eq", Op::eq},
    {"ne", Op::ne},
    {"in", Op::in},
    {"lt", Op::lt},
    {"lte", Op::lte},
    {"gt", Op::gt},
    {"gte", Op::gte},
};

bool plain(const json::value& value) {
  return value.is_string() || value.is_number() || value.is_bool();
}

bool same_type(const json::value& a, const json::value& b) {
  return (a.is_string() && b.is_string()) || (a.is_bool() && b.is_bool()) || (a.is_number() && b.is_number());
}

bool equal(const json::value& a, const json::value& b) {
  if (a.is_number() && b.is_number()) {
    return a.to_number<double>() == b.to_number<double>();
  }
  return a == b;
}

Condition parse_condition(std::string key, std::string_view op, const json::value& value, const std::string& field) {
  const std::string where = field + "." + key;
  const auto* found =
      std::find_if(std::begin(operators), std::end(operators), [&](const Name& name) { return op == name.name; });
  if (found == std::end(operators)) {
    fail_field(where, "[filter] {}: an operator is one of eq, ne, in, lt, lte, gt, gte; got {}", where, op);
  }
  Condition condition{std::move(key), found->op, {value}};
  if (found->op == Op::in) {
    if (!value.is_array() || value.get_array().empty() || value.get_array().size() > most_values) {
      fail_field(where, "[filter] {}.in must be an array of 1 to {} values", where, most_values);
    }
    condition.values.assign(value.get_array().begin(), value.get_array().end());
  }
  for (const json::value& one : condition.values) {
    if (!plain(one) || !same_type(one, condition.values[0])) {
      fail_field(
          where,
          "[filter] {} compares with strings, numbers or booleans, with one kind at a time; got {}",
          where,
          json_excerpt(value));
    }
  }
  if (found->op >= Op::lt && !value.is_number()) {
    fail_field(where, "[filter] {}.{} compares with a number; got {}", where, op, json_kind(value));
  }
  return condition;
}

bool holds(const Condition& condition, const json::value& value) {
  if (!same_type(value, condition.values[0])) {
    return false;
  }
  const auto number = [](const json::value& of) { return of.to_number<double>(); };
  switch (condition.op) {
    case Op::eq:
    case Op::in:
      return std::any_of(
          condition.values.begin(), condition.values.end(), [&](const json::value& one) { return equal(value, one); });
    case Op::ne:
      return !equal(value, condition.values[0]);
    case Op::lt:
      return number(value) < number(condition.values[0]);
    case Op::lte:
      return number(value) <= number(condition.values[0]);
    case Op::gt:
      return number(value) > number(condition.values[0]);
    case Op::gte:
      return number(value) >= number(condition.values[0]);
  }
  return false;
}

} // namespace

Filter parse_filter(const json::value& value, const std::string& field) {
  if (!value.is_object()) {
    fail_field(field, "[filter] {} must be an object; got {}", field, json_kind(value));
  }
  Filter filter;
  for (const auto& [key, condition] : value.get_object()) {
    if (std::string_view(key).find('\0') != std::string_view::npos) {
      fail_field(field, "[filter] {}: a key must not hold a zero byte", field);
    }
    if (!condition.is_object()) {
      filter.push_back(parse_condition(std::string(key), "eq", condition, field));
      continue;
    }
    if (condition.get_object().empty()) {
      fail_field(field, "[filter] {}.{} has no condition", field, std::string_view(key));
    }
    for (const auto& [op, with] : condition.get_object()) {
      filter.push_back(parse_condition(std::string(key), op, with, field));
    }
  }
  if (filter.size() > most_conditions) {
    fail_field(field, "[filter] {} has {} conditions; the limit is {}", field, filter.size(), most_conditions);
  }
  return filter;
}

bool matches(const Filter& filter, const json::object& metadata) {
  return std::all_of(filter.begin(), filter.end(), [&](const Condition& condition) {
    const json::value* value = metadata.if_contains(condition.key);
    return value != nullptr && holds(condition, *value);
  });
}

} // namespace parallm
