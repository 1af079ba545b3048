#include "api/routes.h"

namespace parallm {

Reply prometheus_metrics(const HttpRequest&, Service& service) {
  return Answer{
      .type = "text/plain; version=0.0.4; charset=utf-8",
      .body = service.metrics().prometheus(service.engine(), service.memories(), service.options().ids[0])};
}

Reply debug_metrics(const HttpRequest&, Service& service) {
  return Answer{.body = service.metrics().debug(service.engine(), service.memories())};
}

} // namespace parallm
