#include "api/answers.h"

#include "base/json.h"
#include "text/utf8.h"

#include <algorithm>
#include <charconv>

namespace parallm {

namespace {

struct KindRow {
  Kind kind;
  int status;
  const char* type;
};

constexpr KindRow kinds[] = {
    {Kind::invalid, 400, "invalid_request_error"},
    {Kind::unauthorized, 401, "authentication_error"},
    {Kind::not_found, 404, "not_found_error"},
    {Kind::conflict, 409, "invalid_request_error"},
    {Kind::too_large, 413, "invalid_request_error"},
    {Kind::busy, 429, "rate_limit_error"},
    {Kind::internal, 500, "server_error"},
    {Kind::unavailable, 503, "service_unavailable_error"},
    {Kind::timeout, 504, "timeout_error"},
};

const KindRow& row_of(Kind kind) {
  return *std::find_if(std::begin(kinds), std::end(kinds), [&](auto& row) { return row.kind == kind; });
}

std::string
error_json(const std::string& message, const char* type, const std::string& param, const std::string& code) {
  auto or_null = [](const std::string& text) { return text.empty() ? json::value(nullptr) : json::value(text); };
  json::object error{{"message", valid_utf8(message)}, {"type", type}};
  error["param"] = or_null(param);
  error["code"] = or_null(code);
  return json_text(json::object{{"error", std::move(error)}});
}

} // namespace

std::string error_body(const Error& error) {
  return error_json(error.what(), row_of(error.kind).type, error.param, error.code);
}

Answer error_answer(const Error& error) {
  Answer answer;
  answer.status = row_of(error.kind).status;
  answer.body = error_body(error);
  if (error.kind == Kind::busy || error.kind == Kind::unavailable) {
    answer.headers.emplace_back("Retry-After", "1");
  }
  if (error.kind == Kind::unauthorized) {
    answer.headers.emplace_back("WWW-Authenticate", "Bearer");
  }
  return answer;
}

Answer wrong_method(const HttpRequest& request, const std::string& allow) {
  Answer answer;
  answer.status = 405;
  answer.body = error_json(
      fmt::format("[server] {} takes {}; got {}", request.path, allow, request.method),
      "invalid_request_error",
      "",
      "method_not_allowed");
  answer.headers.emplace_back("Allow", allow);
  return answer;
}

Headers cors_headers(const std::vector<std::string>& origins, std::string_view origin) {
  auto has = [&](std::string_view wanted) {
    return std::find(origins.begin(), origins.end(), wanted) != origins.end();
  };
  Headers headers;
  if (has("*")) {
    headers.emplace_back("Access-Control-Allow-Origin", "*");
  } else if (!origin.empty() && has(origin)) {
    headers.emplace_back("Access-Control-Allow-Origin", origin);
    headers.emplace_back("Vary", "Origin");
  } else {
    return headers;
  }
  headers.emplace_back("Access-Control-Expose-Headers", "x-request-id, x-ignored-fields");
  return headers;
}

Answer preflight(const std::string& allow, std::string_view wanted) {
  Answer answer;
  answer.status = 204;
  answer.headers = {{"Allow", allow}, {"Access-Control-Allow-Methods", allow}, {"Access-Control-Max-Age", "600"}};
  if (!wanted.empty()) {
    answer.headers.emplace_back("Access-Control-Allow-Headers", wanted);
  }
  return answer;
}

namespace {

std::string percent_decoded(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    unsigned byte = 0;
    const char* digits = text.data() + i + 1;
    if (text[i] == '%' && i + 2 < text.size() && std::from_chars(digits, digits + 2, byte, 16).ptr == digits + 2) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

} // namespace

std::string decode_path(std::string_view target) {
  return percent_decoded(target.substr(0, target.find_first_of("?#")));
}

std::map<std::string, std::string> decode_query(std::string_view target) {
  std::map<std::string, std::string> out;
  target = target.substr(0, target.find('#'));
  const size_t begin = target.find('?');
  std::string query(begin == target.npos ? "" : target.substr(begin + 1));
  std::replace(query.begin(), query.end(), '+', ' ');
  for (std::string_view rest = query; !rest.empty();) {
    const std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
    const size_t equals = pair.find('=');
    if (!pair.empty()) {
      out[percent_decoded(pair.substr(0, equals))] =
          equals == pair.npos ? "" : percent_decoded(pair.substr(equals + 1));
    }
  }
  return out;
}

bool same_secret(std::string_view a, std::string_view b) {
  unsigned difference = a.size() != b.size();
  for (size_t i = 0; i < a.size(); ++i) {
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b.empty() ? 0 : b[i % b.size()]);
  }
  return difference == 0;
}

bool is_id(std::string_view text) {
  return !text.empty() && text.size() <= 128 &&
      std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > ' ' && c <= '~'; });
}

} // namespace parallm
