// Answers that belong to no route: errors as OpenAI writes them, and what
// browsers ask for.
#pragma once

#include "api/http.h"
#include "base/error.h"

#include <string>
#include <string_view>
#include <vector>

namespace parallm {

/** {"error": {"message", "type", "param", "code"}}: also what stands inside a
 * stream. */
std::string error_body(const Error& error);

/** The error with its HTTP status, and Retry-After where trying again helps. */
Answer error_answer(const Error& error);

/** 405, naming the methods that the path has. */
Answer wrong_method(const HttpRequest& request, const std::string& allow);

/** CORS headers of any answer (Fetch standard, 3.2). `origins`: "*", or the
 * origins that may read answers. */
Headers cors_headers(const std::vector<std::string>& origins, std::string_view origin);

/** The answer to OPTIONS. `wanted`: Access-Control-Request-Headers. */
Answer preflight(const std::string& allow, std::string_view wanted);

/** The path of a request target: without the query, percent-decoded. */
std::string decode_path(std::string_view target);

/** The query of a request target, percent-decoded, + being a space. */
std::map<std::string, std::string> decode_query(std::string_view target);

/** Equal in a time that does not tell where they differ. */
bool same_secret(std::string_view a, std::string_view b);

/** May stand in a header and in a response's id. */
bool is_id(std::string_view text);

} // namespace parallm
