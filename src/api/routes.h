// Every route of the server, in one table. A handler reads the body, checks it,
// and gives an answer or a Live one; it throws Error for all that is wrong.
// Handlers run on any thread and keep nothing between calls.
#pragma once

#include "api/http.h"
#include "api/service.h"
#include "base/json.h"

#include <span>
#include <string_view>

namespace parallm {

struct Route {
  std::string_view method;
  std::string_view path; // a last "*" matches the rest, slashes too
  Reply (*handle)(const HttpRequest&, Service&);
  bool open = false; // needs no API key
  /** Which threads run it. `work`: tokenizing and rendering take time; `waiting`: it asks what is outside the process,
   * and may have to wait. */
  enum class On { connection, work, waiting } on = On::connection;
};

std::span<const Route> routes();

/** The route of a request, its `rest` filled in; HEAD goes where GET goes.
 * Errors: not_found. Null where the path is known under other methods: `allow`
 * lists them. */
const Route* find_route(HttpRequest& request, std::string& allow);

// One file a family.
Reply health(const HttpRequest& request, Service& service);
Reply list_models(const HttpRequest& request, Service& service);
Reply show_model(const HttpRequest& request, Service& service);
Reply completions(const HttpRequest& request, Service& service);
Reply chat_completions(const HttpRequest& request, Service& service);
Reply perplexity(const HttpRequest& request, Service& service);
Reply tokenize(const HttpRequest& request, Service& service);
Reply detokenize(const HttpRequest& request, Service& service);
Reply prometheus_metrics(const HttpRequest& request, Service& service);
Reply debug_metrics(const HttpRequest& request, Service& service);
Reply add_memories(const HttpRequest& request, Service& service);
Reply list_memories(const HttpRequest& request, Service& service);
Reply delete_memories(const HttpRequest& request, Service& service);
Reply list_memory_namespaces(const HttpRequest& request, Service& service);
Reply query_memories(const HttpRequest& request, Service& service);
Reply list_memory_jobs(const HttpRequest& request, Service& service);
Reply show_memory_job(const HttpRequest& request, Service& service);
Reply cancel_memory_job(const HttpRequest& request, Service& service);
Reply show_memory(const HttpRequest& request, Service& service);
Reply delete_memory(const HttpRequest& request, Service& service);
/** /v1/models/<id>/memories and what is under it: as /v1/memories. Nothing where the path is another. */
std::optional<Reply> under_model(const HttpRequest& request, Service& service);
Reply change_under_model(const HttpRequest& request, Service& service);

/** The request's body as an object. Errors: invalid. */
json::object read_body(const HttpRequest& request);

} // namespace parallm
