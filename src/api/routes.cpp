#include "api/routes.h"

#include "base/error.h"

namespace parallm {

std::span<const Route> routes() {
  constexpr bool open = true;
  constexpr auto work = Route::On::work, waiting = Route::On::waiting;
  static const Route table[] = {
      {"GET", "/health", health, open},
      {"GET", "/v1/models", list_models},
      {"GET", "/v1/models/*", show_model},
      {"POST", "/v1/models/*", change_under_model, false, work},
      {"DELETE", "/v1/models/*", change_under_model},
      {"POST", "/v1/completions", completions, false, work},
      {"POST", "/v1/chat/completions", chat_completions, false, work},
      {"POST", "/v1/perplexity", perplexity, false, work},
      {"POST", "/v1/memories", add_memories, false, work},
      {"GET", "/v1/memories", list_memories, false, waiting},
      {"DELETE", "/v1/memories", delete_memories, false, waiting},
      {"GET", "/v1/memories/namespaces", list_memory_namespaces, false, waiting},
      {"POST", "/v1/memories/query", query_memories, false, waiting},
      {"GET", "/v1/memories/jobs", list_memory_jobs},
      {"GET", "/v1/memories/jobs/*", show_memory_job},
      {"DELETE", "/v1/memories/jobs/*", cancel_memory_job},
      {"GET", "/v1/memories/*", show_memory, false, waiting},
      {"DELETE", "/v1/memories/*", delete_memory, false, waiting},
      {"POST", "/tokenize", tokenize, false, work},
      {"POST", "/detokenize", detokenize, false, work},
      {"GET", "/metrics", prometheus_metrics},
      {"GET", "/debug/metrics", debug_metrics},
  };
  return table;
}

const Route* find_route(HttpRequest& request, std::string& allow) {
  std::string_view method = request.method;
  if (method == "HEAD") {
    method = "GET";
  }
  for (const Route& route : routes()) {
    bool open_end = route.path.ends_with('*');
    std::string_view fixed = route.path.substr(0, route.path.size() - open_end);
    bool matches =
        open_end ? request.path.starts_with(fixed) && request.path.size() > fixed.size() : request.path == fixed;
    if (!matches) {
      continue;
    }
    if (route.method == method) {
      request.rest = request.path.substr(fixed.size());
      return &route;
    }
    allow += (allow.empty() ? "" : ", ") + std::string(route.method) + (route.method == "GET" ? ", HEAD" : "");
  }
  if (allow.empty()) {
    fail(Kind::not_found, "[server] no such path; got {} {}", request.method, request.path);
  }
  return nullptr;
}

json::object read_body(const HttpRequest& request) {
  json::value body = parse_json(request.body, "body");
  if (!body.is_object()) {
    fail(Kind::invalid, "[json] the body must be a JSON object; got {}", json_kind(body));
  }
  return std::move(body.get_object());
}

} // namespace parallm
