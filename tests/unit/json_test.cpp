#include "base/json.h"

#include <doctest/doctest.h>

#include <limits>

namespace parallm::test {

TEST_CASE("json: numbers are written as people write them, and read back the same") {
  const json::object value{
      {"quarter", -0.25},
      {"one", 1.0},
      {"small", 5e-07},
      {"great", 1e22},
      {"float", shortest(-2.584057e-1f)},
      {"integer", 7},
      {"none", std::numeric_limits<double>::infinity()}};
  const std::string text = json_text(value);
  CHECK(
      text == R"({"quarter":-0.25,"one":1.0,"small":5e-07,"great":1e+22,"float":-0.2584057,"integer":7,"none":null})");
  const json::value again = parse_json(text, "text");
  CHECK(again.at("small").as_double() == 5e-07);
  CHECK(again.at("great").as_double() == 1e22);
  CHECK(again.at("integer").as_int64() == 7);
}

TEST_CASE("json: everything but numbers is written as Boost.JSON writes it") {
  const json::value value{
      {"a\"\n\x01", json::array{nullptr, true, json::array{}, json::object{}, "\u00e9\u4e2d", uint64_t{1} << 63}},
      {"b", ""}};
  CHECK(json_text(value) == json::serialize(value));
}

TEST_CASE("json: pretty text has a line for each member and reads back the same") {
  const json::value value{{"a", {1, 2.0}}, {"b", json::object{}}, {"c", json::array{}}, {"d", {{"e", "f"}}}};
  CHECK(pretty_json(value) == R"({
    "a": [
        1,
        2.0
    ],
    "b": {},
    "c": [],
    "d": {
        "e": "f"
    }
})");
  CHECK(parse_json(pretty_json(value), "text") == value);
}

} // namespace parallm::test
