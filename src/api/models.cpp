#include "api/routes.h"

#include "base/error.h"

namespace parallm {

namespace {

// OpenAI's fields, and the old server's beside them.
json::object model_card(const std::string& id, const Service& service) {
  const ServedModel& served = service.model();
  const auto& options = service.options();
  return {
      {"id", id},
      {"object", "model"},
      {"created", service.created()},
      {"owned_by", "mlx_parallm"},
      {"root", options.ids[0]},
      {"parent", nullptr},
      {"max_model_len", served.engine->options().max_context},
      {"status", "loaded"},
      {"type", "causal_lm"},
      {"path_or_hf_id", options.path}};
}

} // namespace

Reply list_models(const HttpRequest&, Service& service) {
  json::array data;
  for (const std::string& id : service.options().ids) {
    data.push_back(model_card(id, service));
  }
  return Answer{.body = json_text(json::object{{"object", "list"}, {"data", std::move(data)}})};
}

Reply show_model(const HttpRequest& request, Service& service) {
  if (auto inner = under_model(request, service)) {
    return std::move(*inner);
  }
  if (!service.serves(request.rest)) {
    Error error(Kind::not_found, "model", fmt::format("The model `{}` does not exist", request.rest));
    error.code = "model_not_found";
    throw error;
  }
  return Answer{.body = json_text(model_card(request.rest, service))};
}

} // namespace parallm
