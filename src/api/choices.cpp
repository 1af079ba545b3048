#include "api/choices.h"

#include "api/schema.h"
#include "base/trace.h"
#include "engine/memory_tally.h"

#include <algorithm>

namespace parallm {

void Part::append(Part&& next) {
  text += next.text;
  tokens.insert(tokens.end(), std::make_move_iterator(next.tokens.begin()), std::make_move_iterator(next.tokens.end()));
  if (next.prompt) {
    prompt = std::move(next.prompt);
  }
  if (next.finish != Finish::none) {
    finish = next.finish;
    use = std::move(next.use);
    unsure = next.unsure;
  }
}

void check_model(const std::string& model, const Service& service) {
  if (!service.serves(model)) {
    Error error(Kind::not_found, "model", fmt::format("The model `{}` does not exist", model));
    error.code = "model_not_found";
    throw error;
  }
}

std::string read_model(Fields& fields, const Service& service) {
  auto model = fields.string("model");
  if (!model) {
    fail_field("model", "[model] is required; got none");
  }
  check_model(*model, service);
  return *model;
}

Headers ignored_fields(const Fields& fields, const Service& service) {
  if (service.options().strict) {
    fields.refuse_unknown();
  }
  auto names = fields.unknown();
  if (names.empty()) {
    return {};
  }
  // A header holds a few names of visible ASCII; the body is the caller's.
  std::string list;
  for (std::string& name : names) {
    std::replace_if(
        name.begin(), name.end(), [](unsigned char c) { return c <= ' ' || c > '~' || c == ','; }, '?');
    if (list.size() + name.size() > 1000) {
      list += ", ...";
      break;
    }
    list += (list.empty() ? "" : ", ") + name;
  }
  return {{"x-ignored-fields", list}};
}

int fit_tokens(size_t prompt, std::optional<int> given, std::optional<int> wanted, int max_context) {
  int64_t left = static_cast<int64_t>(max_context) - static_cast<int64_t>(prompt);
  int64_t needed = given.value_or(1);
  if (needed > left) {
    Error error(
        Kind::invalid,
        given && left >= 0 ? "max_tokens" : "prompt",
        fmt::format(
            "This model's maximum context length is {} tokens. However, you "
            "requested {} tokens ({} in the prompt, {} in the completion).",
            max_context,
            static_cast<int64_t>(prompt) + needed,
            prompt,
            needed));
    error.code = "context_length_exceeded";
    throw error;
  }
  if (given) {
    return *given;
  }
  return static_cast<int>(std::min<int64_t>(left, wanted.value_or(max_context)));
}

Ask read_ask(Fields& fields, Service& service, std::string_view request_id) {
  const ServedModel& served = service.model();
  Ask ask;
  ask.model = read_model(fields, service);
  ask.id = fields.string("request_id").value_or(std::string(request_id));
  ask.n = static_cast<int>(fields.integer("n", 1, service.options().max_choices).value_or(1));
  int best = static_cast<int>(fields.integer("best_of", 1, service.options().max_choices).value_or(ask.n));
  if (best != ask.n) {
    fail_field("best_of", "[best_of] must equal n ({}); got {}", ask.n, best);
  }
  ask.stream = fields.boolean("stream").value_or(false);
  if (const json::object* options = fields.object("stream_options")) {
    if (!ask.stream) {
      fail_field("stream_options", "[stream_options] is for stream: true alone");
    }
    Fields inner(*options, "stream_options.");
    ask.include_usage = inner.boolean("include_usage").value_or(false);
    inner.accept({"include_obfuscation"});
    inner.refuse({"continuous_usage_stats"});
  }
  ask.sampling =
      read_sampling(fields, served.sampling_defaults, *served.tokenizer, served.engine->options().vocabulary);
  ask.stops = read_stops(fields);
  ask.keep_stop = fields.boolean("include_stop_str_in_output").value_or(false);
  ask.skip_special = fields.boolean("skip_special_tokens").value_or(true);
  ask.token_ids = fields.boolean("return_token_ids").value_or(false);
  ask.mask = read_grammar(fields, served);
  ask.cache_salt = fields.string("cache_salt").value_or("");
  ask.memory = read_memory(fields, served);
  fields.accept(
      {"user",
       "metadata",
       "store",
       "service_tier",
       "safety_identifier",
       "prompt_cache_key",
       "prompt_cache_retention",
       "prediction",
       "verbosity"});
  fields.refuse(
      {"use_beam_search",
       "bad_words",
       "allowed_token_ids",
       "truncate_prompt_tokens",
       "logits_processors",
       "priority",
       "mm_processor_kwargs",
       "lora_adapter"});
  return ask;
}

Reply begin(Service& service, Ask ask, Room room, std::function<std::unique_ptr<Live>(Ask)> make) {
  size_t longest = 0;
  for (const auto& ids : ask.prompts) {
    longest = std::max(longest, ids.size());
  }
  const auto start = [&service, longest, room, make = std::move(make)](Ask ask) -> Reply {
    const size_t before = ask.memories ? ask.memories->recall.before : 0;
    const int context = service.model().engine->options().max_context;
    ask.max_tokens = fit_tokens(longest + before, room.given, room.wanted, context);
    return make(std::move(ask));
  };
  if (!ask.memory) {
    return start(std::move(ask));
  }
  if (ask.memory->wanted.most > 0 && ask.prompts.size() > 1) {
    fail_field("memory.max_documents", "[memory.max_documents] is for one prompt; got {}", ask.prompts.size());
  }
  auto later = std::make_unique<Later>();
  later->work = [&service, start, ask = std::move(ask)](const std::atomic<bool>& over) -> Reply {
    Ask now = ask;
    now.memory->wanted.prompt = now.prompts[0];
    now.memory->wanted.over = &over;
    now.memories = std::make_shared<MemoryView>(service.model().memories->recall(now.memory->wanted, now.memory->how));
    now.memory->wanted.over = nullptr;
    return start(std::move(now));
  };
  return later;
}

Choices::Choices(Service& service, Ask ask)
    : tokenizer_(service.model().tokenizer),
      engine_(service.model().engine),
      metrics_(service.metrics()),
      ask_(std::move(ask)),
      started_(std::chrono::steady_clock::now()) {
  size_t rows = ask_.prompts.size() * ask_.n;
  if (rows > static_cast<size_t>(service.options().max_choices)) {
    fail_field(
        ask_.n > 1 ? "n" : "prompt",
        "[n] times the number of prompts must be at most {}; got {} x {}",
        service.options().max_choices,
        ask_.n,
        ask_.prompts.size());
  }
  rows_.reserve(rows);
  for (size_t r = 0; r < rows; ++r) {
    const auto& prompt = ask_.prompts[r / ask_.n];
    Request request;
    request.prompt = prompt;
    request.max_tokens = *ask_.max_tokens;
    request.sampling = ask_.sampling;
    request.sampling.seed = choice_seed(ask_.sampling.seed, r);
    request.mask = ask_.mask ? ask_.mask() : nullptr;
    request.cache_salt = ask_.cache_salt;
    if (ask_.memories) {
      request.recall = ask_.memories->recall;
    }
    rows_.push_back(
        {engine_->generate(std::move(request)),
         TextStream(*tokenizer_, ask_.stops, ask_.skip_special, ask_.keep_stop, ask_.sampling.min_tokens)});
  }
  if (ask_.stream) {
    metrics_.streamed();
  }
}

void Choices::on_ready(const std::function<void()>& wake) {
  for (Row& row : rows_) {
    row.stream.on_ready(wake);
  }
}

void Choices::observe(Row& row) {
  auto seconds = [](auto from, auto to) { return std::chrono::duration<double>(to - from).count(); };
  auto now = std::chrono::steady_clock::now();
  if (row.tokens == 1) {
    metrics_.first_token(seconds(started_, now));
  } else {
    metrics_.between_tokens(seconds(row.last, now));
  }
  row.last = now;
}

void Choices::end(Row& row, Part& part, Finish finish) {
  part.text += row.text.flush();
  if (row.text.stopped()) { // flush may complete one
    finish = Finish::stop;
  }
  part.finish = finish;
  part.unsure = row.unsure;
  if (ask_.memory && ask_.memory->wanted.cited) {
    part.use = std::move(row.use);
  }
  row.ended = true;
  if (++ended_ == rows_.size()) {
    metrics_.request_done(std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count());
  }
}

void Choices::take_event(Row& row, Event event, Part& part) {
  if (event.error) {
    throw *event.error;
  }
  if (event.whole_use) {
    row.use.whole = std::move(*event.whole_use);
  }
  if (event.finish == Finish::cancelled) {
    fail(Kind::unavailable, "[engine] the request was cancelled");
  }
  row.cached = event.cached_tokens;
  if (!event.prompt.empty()) {
    part.prompt = std::move(event.prompt);
  }
  // An end token is counted and scored, but it is no text.
  bool end_token = event.finish == Finish::stop;
  if (event.token) {
    ++row.tokens;
    row.unsure += event.looked_again;
    if (event.token_use) {
      row.use.tokens.push_back(std::move(*event.token_use));
    }
    observe(row);
    if (!end_token || ask_.keep_stop) {
      part.text += row.text.push(event.token->token.id);
    }
    part.tokens.push_back(std::move(*event.token));
  }
  if (row.text.stopped()) {
    row.stream.cancel();
    if (!event.whole_use) { // the engine's sum would have tokens behind the stop string, as many as it was ahead
      MemoryTally tally;
      for (const MemoryUse& use : row.use.tokens) {
        tally.add(use);
      }
      row.use.whole = tally.take();
    }
    end(row, part, Finish::stop);
  } else if (event.finish != Finish::none) {
    end(row, part, event.finish);
  }
}

std::vector<Part> Choices::take() {
  trace::Span span("text");
  std::vector<Part> parts;
  for (size_t r = 0; r < rows_.size(); ++r) {
    Row& row = rows_[r];
    Part part;
    part.index = static_cast<int>(r);
    bool news = false;
    while (!row.ended) {
      auto event = row.stream.try_next();
      if (!event) {
        break;
      }
      news = true;
      take_event(row, std::move(*event), part);
    }
    if (news) {
      part.first = !row.begun;
      row.begun = true;
      parts.push_back(std::move(part));
    }
  }
  return parts;
}

bool Choices::done() const {
  return ended_ == rows_.size();
}

json::object Choices::usage() const {
  int64_t prompt = 0;
  int64_t cached = 0;
  int64_t generated = 0;
  for (size_t p = 0; p < ask_.prompts.size(); ++p) {
    prompt += static_cast<int64_t>(ask_.prompts[p].size());
    cached += rows_[p * ask_.n].cached;
  }
  for (const Row& row : rows_) {
    generated += row.tokens;
  }
  return {
      {"prompt_tokens", prompt},
      {"completion_tokens", generated},
      {"total_tokens", prompt + generated},
      {"prompt_tokens_details", {{"cached_tokens", cached}}}};
}

const Ask& Choices::ask() const {
  return ask_;
}

const Tokenizer& Choices::tokenizer() const {
  return *tokenizer_;
}

} // namespace parallm
