// JSON (RFC 8259) by Boost.JSON: strict UTF-8, no NaN, the last of duplicate
// keys wins. Free functions, any thread.
#pragma once

#include <boost/json.hpp>

#include <string>
#include <string_view>

namespace parallm {

namespace json = boost::json;

/** Errors: invalid, with the parser's words and the place. `what` names the
 * text in the error: "body". */
json::value parse_json(std::string_view text, std::string_view what);

/** The value as text, its numbers as people write them: -0.25, 1.0, 5e-07.
 * (Boost.JSON writes -2.5E-1.) */
std::string json_text(const json::value& value);

/** "a string", "an object": a value's kind for error texts. */
std::string_view json_kind(const json::value& value);

/** At most `limit` bytes of the value's text, cut at a character: what error
 * texts show of it. */
std::string json_excerpt(const json::value& value, size_t limit = 60);

/** The double with the same shortest decimal text as the float, so that -1.46f
 * is written as -1.46. */
double shortest(float value);

} // namespace parallm
