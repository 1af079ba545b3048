// The rows of one request: choice c of prompt p is row p*n + c, a Stream each.
// Turns the engine's events into text that is certain, log probabilities,
// finish reasons and usage; chat.cpp and completions.cpp only write them down.
// Belongs to one connection; used by one thread at a time. Its destructor frees
// the rows.
#pragma once

#include "api/http.h"
#include "api/memory_fields.h"
#include "api/metrics.h"
#include "api/service.h"
#include "base/json.h"
#include "text/text_stream.h"

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

class Fields;

/** What both routes read from a body, and the rows made of it. */
struct Ask {
  std::vector<std::vector<int32_t>> prompts;
  int n = 1;
  std::optional<int> max_tokens; // none: the route's default, or what the context leaves
  Sampling sampling; // one row's; the seed is mixed for each
  std::vector<std::string> stops;
  bool keep_stop = false;
  bool skip_special = true;
  bool stream = false;
  bool include_usage = false;
  bool token_ids = false; // return_token_ids
  std::string cache_salt;
  std::string model; // as the request wrote it
  std::string id; // "cmpl-..."
  std::function<std::shared_ptr<TokenMask>()> mask; // one a row; empty: no grammar
  std::optional<MemoryAsk> memory;
  std::shared_ptr<const MemoryView> memories; // what `memory` came to
};

/** Reads the fields that chat and completions share, all but the prompts and
 * max_tokens. */
Ask read_ask(Fields& fields, Service& service, std::string_view request_id);

/** What is new in a choice, or, summed up, all of it. */
struct Part {
  int index = 0;
  std::string text;
  std::vector<Scored> tokens; // also the end token, whose text is not in `text`
  std::optional<std::vector<Scored>> prompt; // prompt_logprobs, once
  bool first = false; // the choice's first part
  Finish finish = Finish::none;
  std::optional<AnswerUse> use; // of memories, with `finish`, where citations were asked for
  int unsure = 0; // tokens that Recall::more gave, with `finish`

  void append(Part&& next);
};

class Choices {
 public:
  /** Puts every row in the engine. Errors: the engine's;
   * context_length_exceeded with both lengths. */
  Choices(Service& service, Ask ask);

  void on_ready(const std::function<void()>& wake);
  /** What came since the last call, a part for each choice that has news.
   * Errors: a row's. */
  std::vector<Part> take();
  bool done() const;

  json::object usage() const;
  const Ask& ask() const;
  const Tokenizer& tokenizer() const;

 private:
  struct Row {
    Stream stream;
    TextStream text;
    bool begun = false;
    bool ended = false;
    AnswerUse use; // of memories, where citations were asked for
    int tokens = 0;
    int unsure = 0; // tokens that Recall::more gave
    int cached = 0;
    std::chrono::steady_clock::time_point last{}; // when its last token came
  };
  void take_event(Row& row, Event event, Part& part);
  void end(Row& row, Part& part, Finish finish);
  void observe(Row& row);

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::shared_ptr<Engine> engine_; // outlives the rows
  Metrics& metrics_;
  Ask ask_;
  std::vector<Row> rows_;
  size_t ended_ = 0;
  std::chrono::steady_clock::time_point started_;
};

/** A completion or chat completion on its way: sums up or streams its parts,
 * and writes usage and the end. */
class LiveGeneration : public Live {
 public:
  LiveGeneration(Service& service, Ask ask);

  void on_ready(std::function<void()> wake) override;
  Progress advance() override;

 protected:
  /** The part as events; may be none. */
  virtual std::string chunks(Part& part) = 0;
  /** One entry of the whole answer's `choices`. */
  virtual json::object choice(Part& whole) = 0;
  virtual const char* object() const = 0; // "chat.completion"
  virtual const char* chunk_object() const = 0; // "chat.completion.chunk"

  /** Writes what a choice had of memories, once it has ended. */
  void add_memory(json::object& choice, const Part& part) const;
  /** One event with one entry in `choices`. */
  std::string chunk(json::object choice) const;
  const Ask& ask() const;
  const Tokenizer& tokenizer() const;

 private:
  json::object envelope(const char* object, json::array choices) const;

  Choices choices_;
  std::time_t created_;
  std::vector<Part> whole_; // not streaming: what has come of each choice
};

/** The grammar of response_format, structured_outputs or guided_*; empty where
 * there is none. */
std::function<std::shared_ptr<TokenMask>()> read_grammar(Fields& fields, const ServedModel& served);

/** How many tokens a request may make: what it says, or what its route gives. */
struct Room {
  std::optional<int> given;
  std::optional<int> wanted; // where none is given; none: all that the context leaves
};

/** Gives the rows their memories, if the request has any, and fits max_tokens to the context; then `make` begins. */
Reply begin(Service& service, Ask ask, Room room, std::function<std::unique_ptr<Live>(Ask)> make);

/** 404 where the model isn't served. */
void check_model(const std::string& model, const Service& service);

/** 404 where the model isn't served; 400 where the field is missing. Gives the
 * field back. */
std::string read_model(Fields& fields, const Service& service);

/** The x-ignored-fields header for what `fields` did not know; an error under
 * --strict. */
Headers ignored_fields(const Fields& fields, const Service& service);

/** max_tokens given, else `wanted` or what is left, whichever is less. Errors:
 * context_length_exceeded. */
int fit_tokens(size_t prompt, std::optional<int> given, std::optional<int> wanted, int max_context);

/** "stop", "length"; null while there is none. */
json::value finish_reason(Finish finish);

/** Keeps the `count` most likely tokens of each. */
void keep_top(std::vector<Scored>& tokens, int count);

/** Chat's `logprobs`: {"content": [...]}. */
json::value chat_logprobs(const std::vector<Scored>& tokens, const Tokenizer& tokenizer);

/** Completions' `logprobs`, written down part by part: offsets go on from where
 * the last part ended. */
class CompletionLogprobs {
 public:
  CompletionLogprobs(const Tokenizer& tokenizer, bool skip_special);
  /** The first prompt token, which nothing predicts. */
  void add_first(int32_t id);
  void add(const Scored& token);
  /** What was added since the last call. */
  json::object take();

 private:
  void place(int32_t id);
  const Tokenizer* tokenizer_;
  bool skip_special_;
  int64_t offset_ = 0; // in characters, as Python counts them
  json::array tokens_, logprobs_, top_, offsets_;
};

/** vLLM's prompt_logprobs: null, then {"id": {"logprob", "rank"?,
 * "decoded_token"}} a position. */
json::array prompt_logprobs(const std::vector<Scored>& prompt, const Tokenizer& tokenizer);

json::array ids_json(const std::vector<Scored>& tokens);
json::array ids_json(const std::vector<int32_t>& ids);

} // namespace parallm
