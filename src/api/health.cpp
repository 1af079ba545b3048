#include "api/routes.h"

namespace parallm {

// 200 when requests will be served, 503 with the reason else: what a load
// balancer asks.
Reply health(const HttpRequest&, Service& service) {
  Answer answer;
  json::object body;
  switch (service.state()) {
    case State::ready:
      body["status"] = "ok";
      break;
    case State::loading:
      body["status"] = "loading";
      break;
    case State::draining:
      body["status"] = "draining";
      break;
    case State::failed:
      body["status"] = "failed";
      body["error"] = service.failure();
      break;
  }
  if (service.state() != State::ready) {
    answer.status = 503;
    answer.headers.emplace_back("Retry-After", "1");
  }
  answer.body = json_text(body);
  return answer;
}

} // namespace parallm
