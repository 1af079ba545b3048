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
  bool heavy = false; // runs on the work threads: tokenizing and rendering take time
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

/** The request's body as an object. Errors: invalid. */
json::object read_body(const HttpRequest& request);

} // namespace parallm
