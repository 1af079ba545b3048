// POST /v1/completions (OpenAI's legacy API, with vLLM's further fields): text
// goes on where the prompt ends.
#include "api/choices.h"
#include "api/routes.h"
#include "api/schema.h"

namespace parallm {

namespace {

struct Prompts {
  std::vector<std::vector<int32_t>> ids;
  std::vector<std::string> texts; // as given; from ids: decoded when echoed
};

std::vector<int32_t>
encode(const std::string& text, bool special, const ServedModel& served, const std::string& field) {
  auto ids = served.tokenizer->encode(text, special);
  if (ids.empty() && served.bos >= 0) {
    ids.push_back(served.bos);
  }
  if (ids.empty()) {
    fail_field(field, "[{}] is empty, and the model has no begin token to stand for it", field);
  }
  return ids;
}

void add_text(
    Prompts& prompts,
    const json::value& text,
    bool special,
    const ServedModel& served,
    const std::string& field) {
  if (!text.is_string()) {
    fail_field(field, "[{}] must be a string as the ones before it; got {}", field, json_kind(text));
  }
  std::string given(text.get_string());
  prompts.ids.push_back(encode(given, special, served, field));
  prompts.texts.push_back(std::move(given));
}

void add_ids(Prompts& prompts, const json::array& array, const ServedModel& served, const std::string& field) {
  auto ids = read_ids(array, field, served.engine->options().vocabulary);
  if (ids.empty()) {
    fail_field(field, "[{}] must hold a token id at least; got none", field);
  }
  prompts.ids.push_back(std::move(ids));
}

// A string, a list of strings, a list of ids, a list of lists of ids.
Prompts read_prompts(Fields& fields, const ServedModel& served) {
  Prompts prompts;
  bool special = fields.boolean("add_special_tokens").value_or(true);
  const json::value* prompt = fields.any("prompt");
  if (!prompt) {
    fail_field("prompt", "[prompt] is required; got none");
  }
  if (prompt->is_string()) {
    add_text(prompts, *prompt, special, served, "prompt");
    return prompts;
  }
  const json::array* list = fields.array("prompt");
  if (list->empty()) {
    fail_field("prompt", "[prompt] must not be an empty list");
  }
  const json::value& first = list->front();
  if (first.is_number()) {
    add_ids(prompts, *list, served, "prompt");
    return prompts;
  }
  for (size_t i = 0; i < list->size(); ++i) {
    const json::value& item = (*list)[i];
    std::string field = fmt::format("prompt[{}]", i);
    if (first.is_array() && item.is_array()) {
      add_ids(prompts, item.get_array(), served, field);
    } else if (first.is_string()) {
      add_text(prompts, item, special, served, field);
    } else {
      fail_field(
          field,
          "[{}] must be a string, a token id or a list of token ids, all items "
          "alike; got {}",
          field,
          json_kind(item));
    }
  }
  return prompts;
}

struct Shape {
  bool echo = false;
  std::optional<int> logprobs;
  std::optional<int> prompt_logprobs;
};

class Completion : public LiveGeneration {
 public:
  Completion(Service& service, Ask ask, Shape shape, std::vector<std::string> texts)
      : LiveGeneration(service, std::move(ask)),
        shape_(shape),
        texts_(std::move(texts)),
        logprobs_(
            this->ask().prompts.size() * this->ask().n,
            CompletionLogprobs(tokenizer(), this->ask().skip_special)) {}

 protected:
  std::string chunks(Part& part) override {
    bool tells = !part.text.empty() || part.finish != Finish::none || (part.first && shape_.echo) ||
        (!part.tokens.empty() && (shape_.logprobs || ask().token_ids));
    return tells ? chunk(write(part)) : "";
  }

  json::object choice(Part& whole) override {
    whole.first = true;
    return write(whole);
  }

  const char* object() const override {
    return "text_completion";
  }
  const char* chunk_object() const override {
    return "text_completion";
  }

 private:
  json::object write(Part& part) {
    const auto& prompt = ask().prompts[part.index / ask().n];
    bool echoes = part.first && shape_.echo;
    std::string text = echoes ? prompt_text(part.index / ask().n) : "";
    text += part.text;
    json::object out{{"text", text}, {"index", part.index}};
    out["logprobs"] = shape_.logprobs ? json::value(logprobs(part, echoes)) : json::value(nullptr);
    out["finish_reason"] = finish_reason(part.finish);
    add_memory(out, part);
    if (shape_.prompt_logprobs && part.first) {
      auto scored = part.prompt.value_or(std::vector<Scored>{});
      keep_top(scored, *shape_.prompt_logprobs);
      out["prompt_logprobs"] = prompt_logprobs(scored, tokenizer());
    }
    if (ask().token_ids) {
      if (part.first) {
        out["prompt_token_ids"] = ids_json(prompt);
      }
      out["token_ids"] = ids_json(part.tokens);
    }
    return out;
  }

  json::object logprobs(Part& part, bool echoes) {
    CompletionLogprobs& list = logprobs_[part.index];
    if (echoes) {
      list.add_first(ask().prompts[part.index / ask().n][0]);
      auto scored = part.prompt.value_or(std::vector<Scored>{});
      keep_top(scored, *shape_.logprobs);
      for (const Scored& token : scored) {
        list.add(token);
      }
    }
    keep_top(part.tokens, *shape_.logprobs);
    for (const Scored& token : part.tokens) {
      list.add(token);
    }
    return list.take();
  }

  std::string prompt_text(size_t prompt) const {
    return texts_.empty() ? tokenizer().decode(ask().prompts[prompt], ask().skip_special) : texts_[prompt];
  }

  Shape shape_;
  std::vector<std::string> texts_; // empty where the prompts came as ids
  std::vector<CompletionLogprobs> logprobs_; // one a choice
};

std::optional<int> read_count(Fields& fields, std::string_view name, int max) {
  auto count = fields.integer(name, 0, max);
  return count ? std::optional<int>(static_cast<int>(*count)) : std::nullopt;
}

} // namespace

Reply completions(const HttpRequest& request, Service& service) {
  const ServedModel& served = service.model();
  json::object body = read_body(request);
  Fields fields(body);
  Ask ask = read_ask(fields, service, request.id);
  ask.id = "cmpl-" + ask.id;
  Shape shape;
  shape.echo = fields.boolean("echo").value_or(false);
  shape.logprobs = read_count(fields, "logprobs", 20);
  shape.prompt_logprobs = read_count(fields, "prompt_logprobs", 20);
  auto max_tokens = read_count(fields, "max_tokens", std::numeric_limits<int>::max());
  fields.refuse({"suffix", "prompt_embeds"});
  Prompts prompts = read_prompts(fields, served);
  Headers headers = ignored_fields(fields, service);

  ask.prompts = std::move(prompts.ids);
  ask.sampling.logprobs = std::max(shape.logprobs.value_or(-1), shape.prompt_logprobs.value_or(-1));
  ask.sampling.prompt_logprobs = shape.prompt_logprobs || (shape.echo && shape.logprobs);
  const Room room{max_tokens, service.options().default_max_tokens};
  return begin(service, std::move(ask), room, [&service, shape, headers, texts = std::move(prompts.texts)](Ask ask) {
    auto live = std::make_unique<Completion>(service, std::move(ask), shape, texts);
    live->headers = headers;
    return live;
  });
}

} // namespace parallm
