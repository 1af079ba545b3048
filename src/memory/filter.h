// Conditions on a document's metadata: {"color": "red", "year": {"gte": 1990, "lt": 2000}, "lang": {"in": ["en",
// "de"]}}. All must hold. A condition holds only where the document has the key, with a value of the condition's type:
// string, number or boolean. Plain values; any thread.
#pragma once

#include "base/json.h"

#include <string>
#include <vector>

namespace parallm {

struct Condition {
  enum class Op { eq, ne, in, lt, lte, gt, gte };
  std::string key;
  Op op = Op::eq;
  std::vector<json::value> values; // one; with `in` at least one, all of one type. Of lt, lte, gt, gte a number.
};

using Filter = std::vector<Condition>;

/** Errors: invalid, naming `field`: an unknown operator, a value of another type, more than 64 conditions. */
Filter parse_filter(const json::value& value, const std::string& field = "filter");

bool matches(const Filter& filter, const json::object& metadata);

} // namespace parallm
