// POST /tokenize and /detokenize (vLLM's): text or a conversation to the ids
// that the model would read, and back.
#include "api/chat.h"
#include "api/choices.h"
#include "api/routes.h"
#include "api/schema.h"
#include "text/utf8.h"

namespace parallm {

Reply tokenize(const HttpRequest& request, Service& service) {
  const ServedModel& served = service.model();
  json::object body = read_body(request);
  Fields fields(body);
  if (fields.any("model")) {
    read_model(fields, service);
  }
  std::vector<int32_t> ids;
  if (auto prompt = fields.string("prompt")) {
    bool special = fields.boolean("add_special_tokens").value_or(true);
    ids = served.tokenizer->encode(*prompt, special);
  } else if (fields.any("messages")) {
    ids = read_chat_prompt(fields, served);
  } else {
    fail_field("prompt", "[prompt] or messages is required; got none");
  }
  bool pieces = fields.boolean("return_token_strs").value_or(false);
  Headers headers = ignored_fields(fields, service);
  json::object out{
      {"count", ids.size()}, {"max_model_len", served.engine->options().max_context}, {"tokens", ids_json(ids)}};
  if (pieces) {
    json::array texts;
    for (int32_t id : ids) {
      texts.push_back(json::string(valid_utf8(served.tokenizer->bytes(id))));
    }
    out["token_strs"] = std::move(texts);
  }
  return Answer{.body = json_text(out), .headers = headers};
}

Reply detokenize(const HttpRequest& request, Service& service) {
  const ServedModel& served = service.model();
  json::object body = read_body(request);
  Fields fields(body);
  if (fields.any("model")) {
    read_model(fields, service);
  }
  const json::array* tokens = fields.array("tokens");
  if (!tokens) {
    fail_field("tokens", "[tokens] is required; got none");
  }
  auto ids = read_ids(*tokens, "tokens", served.engine->options().vocabulary);
  bool skip = fields.boolean("skip_special_tokens").value_or(false);
  Headers headers = ignored_fields(fields, service);
  return Answer{.body = json_text(json::object{{"prompt", served.tokenizer->decode(ids, skip)}}), .headers = headers};
}

} // namespace parallm
