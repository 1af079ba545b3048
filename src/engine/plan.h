// What the scheduler tells the runner and what it gets back. Plain data, serializable (rank 0 sends it to other ranks).
// A step is one forward pass over a flat list of tokens: decoding rows give one token each, prefilling rows a chunk.
#pragma once

#include "engine/sampling.h"
#include "kv/recall_how.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace parallm {

/** Which tokens a row may take next (a grammar). Called on the engine's thread, between steps. */
class TokenMask {
 public:
  virtual ~TokenMask() = default;
  /** Bit t of word t/32 is set where token t is allowed. The span has (vocabulary + 31) / 32 words. */
  virtual void allowed(std::span<uint32_t> words) = 0;
  /** The row took this token. */
  virtual void accept(int32_t token) = 0;
};

class Recalled; // kv/recall.h

/** The memories of a row, as they were when it was asked for: it keeps them, whatever is removed meanwhile. */
struct Recall {
  std::shared_ptr<const Recalled> memories; // null: none
  std::string key; // stands for them and how they are used: rows share KV only under the same
  int before = 0; // tokens that they put before the row's own: part of its context
  std::shared_ptr<const std::vector<float>> background; // [N] (background.h): what is told of a token's use of them is
                                                        // what is most above it; null: 0
  std::shared_ptr<const Recalled> more = nullptr; // for positions that `memories` leave unsure; null: none is
  float unsure_above = 0; // RecallHow's
};

/** A row enters a slot (also after preemption): what the runner must know about it from then on. */
struct Join {
  int slot;
  Sampling sampling;
  std::vector<int32_t> end_ids; // banned while under min_tokens: the model's end ids and stop_token_ids
  std::vector<int32_t> prompt; // the request's own prompt (for repetition penalties)
  std::vector<int32_t> generated; // tokens it made before a preemption
  Recall recall = {};
};

/** One row's part of a step. Its tokens take positions [start, start + count). */
struct RowStep {
  int slot = 0;
  int start = 0;
  int count = 1;
  std::vector<int32_t> ids; // `count` ids; empty: one token, the last one that this slot sampled (still on the device)
  bool sample = false; // the last position's logits give the next token
  int draw_index = 0; // how many tokens the row has generated before this one
  int score = 0; // first of its `count` tokens whose next-token logprob is wanted, -1: none (prompt_logprobs)
  std::vector<int32_t> score_ids; // the tokens that follow each scored position
  int guesses = 0; // its last tokens, behind the one that `sample` is for, are guesses at what follows: one more draw
                   // each, kept while the ones before were right. `ids` has them, or else the draft model makes them.
  std::vector<int32_t>
      draft_ids; // what the draft model has yet to read: positions [draft_start, ...), at most to `start`
  int draft_start = 0;
  std::vector<int32_t> blocks; // block table: position p lives in blocks[p / block_size] at p % block_size
  std::vector<uint32_t> allowed; // grammar mask, empty: every token
  float unsure_above = 0; // nats; not 0: where the next token's entropy (of the softmax of the model's logits) is
                          // above, none is taken
  std::vector<int32_t> more; // which of its `count` tokens, rising, recall Recall::more; such a row has no guesses
  int rope_length = 0; // the prompt's length, for RoPE kinds whose base grows with it ("dynamic")
};

struct Plan {
  uint64_t number = 0;
  std::vector<Join> joins;
  std::vector<RowStep> rows; // decoding rows first
  bool empty() const {
    return rows.empty();
  }
};

struct TokenLogprob {
  int32_t id = -1;
  float logprob = 0;
};

/** A token with its log probability under the model's own distribution (before penalties and temperature), and, where
 *  asked for, the most likely ones in falling order. */
struct Scored {
  TokenLogprob token;
  std::vector<TokenLogprob> top;
};

struct RowResult {
  int slot = 0;
  std::vector<Scored> sampled; // where the plan said `sample`: a token, and one more for each right guess
  bool unsure = false; // RowStep::unsure_above was passed: nothing is sampled
  std::vector<Scored> prompt; // where the plan said `score`
  std::vector<MemoryUse> uses; // one for each of `sampled`, of the query that gave it; empty: not recorded
};

/** Runs steps. The real one owns the model; tests have a fake. Used by the engine's thread alone. */
class Runner {
 public:
  virtual ~Runner() = default;
  /** Starts the step and returns before it is done; at most two are under way. */
  virtual void launch(const Plan& plan) = 0;
  /** Waits for the oldest step under way; one result for each of its rows, in the plan's order. */
  virtual std::vector<RowResult> collect() = 0;
  /** Forgets every step under way, after a failure. */
  virtual void reset() = 0;
};

} // namespace parallm
