// The engine: one thread that owns the model, its caches and the clock. Every other thread speaks plain data to it.
// `generate` puts a request in a bounded inbox and gives a Stream of events; `run` does a job between two steps.
// Thread-safe: generate, run, stats, drain. A Stream belongs to one thread at a time.
#pragma once

#include "base/error.h"
#include "engine/plan.h"

#include <array>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

enum class Finish { none, stop, length, cancelled, error };

struct Request {
  std::vector<int32_t> prompt; // at least one id, all below the vocabulary's size
  int max_tokens = 16; // 0: only the prompt is read (and scored)
  Sampling sampling;
  std::shared_ptr<TokenMask> mask; // null: no grammar
  std::string cache_salt; // rows share KV only under the same salt
  Recall recall = {};
};

struct Event {
  std::optional<Scored> token; // absent in an event that only ends the stream, or only scores the prompt
  std::vector<Scored> prompt; // prompt_logprobs: entry i belongs to prompt position i+1; whole, once, before tokens
  Finish finish = Finish::none; // not `none`: the last event. A sampled end token comes with `stop`.
  int cached_tokens = 0; // prompt tokens whose KV was reused, known from the first event on
  std::optional<Error> error; // where finish is `error`
  // With RecallHow::record. Of the query that gave `token`, the one at the position before: the memories alone that it
  // used most (memory_tally.h), falling.
  std::optional<MemoryUse> token_use;
  bool looked_again = false; // `token` comes of a position that was computed twice (Recall::more)
  // In the last event, whatever ends the stream, cancelled ones too: of all tokens, all memories that were chosen.
  std::optional<MemoryUse> whole_use;
};

class Stream {
 public:
  /** What both sides share. Opaque. */
  struct State;

  explicit Stream(std::shared_ptr<State> state);
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream(); // cancels: the row leaves at the next step

  /** Blocks until there is an event. Not to be called after the last one. */
  Event next();
  /** The next event where one is there. */
  std::optional<Event> try_next();
  /** `wake` is called, on the engine's thread, each time the stream goes from empty to not empty; at once if it isn't
   *  empty now. It must not block or throw, and may be called once more while the Stream is destroyed. */
  void on_ready(const std::function<void()>& wake);
  void cancel();

 private:
  std::shared_ptr<State> state_;
};

struct EngineOptions {
  int max_rows = 32; // rows in one step
  int max_waiting = 256; // requests there may be beyond max_rows; one more is refused: busy
  int max_context = 0; // prompt and output, in tokens
  int block_size = 16; // tokens in a KV block
  int blocks = 0; // KV capacity
  int prefill_tokens = 512; // a step's token budget while no row decodes
  int mixed_tokens = 64; // and while some do: what a long prompt may add to their step
  bool prefix_cache = true;
  int guesses = 0; // most guessed tokens of a row in a step (speculation.h), where they pay; 0: none
  bool draft_model = false; // the runner has one, which guesses; else a row's own tokens do
  bool memories = false; // the runner's caches take Request::recall
  int own_kv_past = 0; // longer prompts share KV only with prompts of their length ("dynamic" RoPE); 0: all share
  std::vector<int32_t> end_ids;
  int vocabulary = 0; // the logits' width
};

/** A snapshot for /metrics, /debug/metrics and tests. Counters only grow. */
struct EngineStats {
  int running = 0, waiting = 0;
  int blocks_used = 0, blocks_total = 0, blocks_cached = 0;
  uint64_t steps = 0, prompt_tokens = 0, cached_tokens = 0, generated_tokens = 0;
  uint64_t prefix_queries = 0, prefix_hits = 0; // in tokens
  uint64_t preemptions = 0, cancelled = 0, failed = 0, finished_stop = 0, finished_length = 0;
  uint64_t guess_steps = 0, guessed_tokens = 0, right_guesses = 0; // rows' steps with guesses
  uint64_t unsure_steps = 0; // rows' steps after which a position was computed again with more memories
  uint64_t decode_rows = 0; // summed over steps: decode_rows / decode_steps = mean batch
  uint64_t decode_steps = 0, prefill_steps = 0;
  std::array<uint64_t, 10> batch_fill{}; // steps by tenths of max_rows that were filled
  double prefill_seconds = 0, decode_seconds = 0; // time of steps that held prompt tokens / only decoding rows
};

class Engine {
 public:
  /** `make_runner` is called on the engine's thread (MLX's state is thread-local) and may complete the options: what
   *  they say of capacity and vocabulary is often known only from the model. Returns once the runner is made; throws
   *  what make_runner threw. */
  Engine(EngineOptions options, std::function<std::unique_ptr<Runner>(EngineOptions&)> make_runner);
  ~Engine(); // cancels what runs and joins the thread

  /** Ready once the runner is made; get() throws what make_runner threw. Requests may come before: they wait. */
  std::shared_future<void> ready() const;

  /** Errors: invalid (ids out of range, a request that can never fit; `param` names it), busy, unavailable. */
  Stream generate(Request request);

  /** Runs `job` on the engine's thread between two steps, when none is under way. What it throws is in the future.
   * Waits where the inbox is full, so a job must not call it. */
  std::future<void> run(std::function<void(Runner&)> job);

  /** Refuses new requests from now on; true once the last row has ended, false if `limit` passed first. */
  bool drain(std::chrono::milliseconds limit);

  EngineStats stats() const;
  const EngineOptions& options() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

} // namespace parallm
