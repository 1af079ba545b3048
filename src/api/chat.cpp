// POST /v1/chat/completions (OpenAI's API, with vLLM's further fields): a
// conversation through the model's template.
#include "api/chat.h"

#include "api/choices.h"
#include "api/routes.h"
#include "api/schema.h"

#include <algorithm>
#include <array>

namespace parallm {

namespace {

class ChatCompletion : public LiveGeneration {
 public:
  ChatCompletion(Service& service, Ask ask, bool logprobs)
      : LiveGeneration(service, std::move(ask)), logprobs_(logprobs) {}

 protected:
  // The role alone first, then text as it comes, then the finish reason alone:
  // OpenAI's order.
  std::string chunks(Part& part) override {
    std::string out;
    if (part.first) {
      json::object role{{"role", "assistant"}, {"content", ""}};
      json::object entry = delta(part.index, std::move(role), nullptr);
      if (ask().token_ids) {
        entry["prompt_token_ids"] = ids_json(ask().prompts[part.index / ask().n]);
      }
      out += chunk(std::move(entry));
    }
    bool scores = logprobs_ && !part.tokens.empty();
    bool ids = ask().token_ids && !part.tokens.empty();
    if (!part.text.empty() || scores || ids) {
      json::object entry = delta(part.index, {{"content", part.text}}, nullptr);
      if (scores) {
        entry["logprobs"] = chat_logprobs(part.tokens, tokenizer());
      }
      if (ids) {
        entry["token_ids"] = ids_json(part.tokens);
      }
      out += chunk(std::move(entry));
    }
    if (part.finish != Finish::none) {
      json::object entry = delta(part.index, {}, finish_reason(part.finish));
      add_memory(entry, part);
      out += chunk(std::move(entry));
    }
    return out;
  }

  json::object choice(Part& whole) override {
    json::object message{{"role", "assistant"}, {"content", whole.text}, {"refusal", nullptr}};
    json::object out{{"index", whole.index}, {"message", std::move(message)}};
    out["logprobs"] = logprobs_ ? chat_logprobs(whole.tokens, tokenizer()) : nullptr;
    out["finish_reason"] = finish_reason(whole.finish);
    add_memory(out, whole);
    if (ask().token_ids) {
      out["prompt_token_ids"] = ids_json(ask().prompts[whole.index / ask().n]);
      out["token_ids"] = ids_json(whole.tokens);
    }
    return out;
  }

  const char* object() const override {
    return "chat.completion";
  }
  const char* chunk_object() const override {
    return "chat.completion.chunk";
  }

 private:
  static json::object delta(int index, json::object delta, json::value finish_reason) {
    json::object out{{"index", index}};
    out["delta"] = std::move(delta);
    out["logprobs"] = nullptr;
    out["finish_reason"] = std::move(finish_reason);
    return out;
  }

  bool logprobs_;
};

// Fields of the chat API that ask for more than text, where what they ask for
// is nothing.
void refuse_what_is_not_text(Fields& fields) {
  if (const json::value* choice = fields.any("tool_choice")) {
    if (*choice != "none" && *choice != "auto") {
      fail_field(
          "tool_choice", "[tool_choice] must be none or auto, tools are not supported; got {}", json_excerpt(*choice));
    }
  }
  if (const json::value* call = fields.any("function_call")) {
    if (*call != "none" && *call != "auto") {
      fail_field(
          "function_call",
          "[function_call] must be none or auto, functions are not supported; "
          "got {}",
          json_excerpt(*call));
    }
  }
  if (const json::array* modalities = fields.array("modalities")) {
    for (const json::value& modality : *modalities) {
      if (modality != "text") {
        fail_field("modalities", "[modalities] only text is supported; got {}", json_excerpt(modality));
      }
    }
  }
  fields.accept({"parallel_tool_calls"});
  fields.refuse(
      {"tools", "functions", "audio", "web_search_options", "chat_template", "documents", "echo", "prompt_logprobs"});
}

std::optional<int> read_max_tokens(Fields& fields) {
  constexpr int most = std::numeric_limits<int>::max();
  auto newer = fields.integer("max_completion_tokens", 0, most);
  auto older = fields.integer("max_tokens", 0, most);
  auto given = newer ? newer : older;
  return given ? std::optional<int>(static_cast<int>(*given)) : std::nullopt;
}

bool read_logprobs(Fields& fields, Sampling& sampling) {
  bool wanted = fields.boolean("logprobs").value_or(false);
  auto top = fields.integer("top_logprobs", 0, 20);
  if (top.value_or(0) > 0 && !wanted) {
    fail_field("top_logprobs", "[top_logprobs] needs logprobs: true; got {}", *top);
  }
  sampling.logprobs = wanted ? static_cast<int>(top.value_or(0)) : -1;
  return wanted;
}

} // namespace

Reply chat_completions(const HttpRequest& request, Service& service) {
  const ServedModel& served = service.model();
  json::object body = read_body(request);
  Fields fields(body);
  Ask ask = read_ask(fields, service, request.id);
  ask.id = "chatcmpl-" + ask.id;
  refuse_what_is_not_text(fields);
  bool logprobs = read_logprobs(fields, ask.sampling);
  auto max_tokens = read_max_tokens(fields);
  auto prompt = read_chat_prompt(fields, served);
  Headers headers = ignored_fields(fields, service);

  ask.prompts.push_back(std::move(prompt));
  return begin(service, std::move(ask), {max_tokens, std::nullopt}, [&service, logprobs, headers](Ask ask) {
    auto live = std::make_unique<ChatCompletion>(service, std::move(ask), logprobs);
    live->headers = headers;
    return live;
  });
}

} // namespace parallm
