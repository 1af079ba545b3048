// Decides what each step computes: which rows run, which tokens of theirs, in
// which KV blocks. A pure data structure: no clock, no I/O, no thread, no
// tensor. Rows are served in order of arrival; `plan` may run while one step is
// uncommitted. Two orders hold it together. Running rows are all older than
// waiting ones (the youngest is preempted first and waiting rows enter in
// order), so the oldest row can always get the blocks it needs. And steps run
// in the order they were planned, writing KV before reading it, so a block is
// shareable, or free again, as soon as a plan says so.
#pragma once

#include "engine/blocks.h"
#include "engine/engine.h"
#include "engine/memory_tally.h"
#include "engine/speculation.h"

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <vector>

namespace parallm {

struct RowEvent {
  uint64_t row;
  Event event;
};

class Scheduler {
 public:
  /** Runs a piece of a row's own code (its TokenMask) and gives back the error
   * it threw. */
  using Guard = std::function<std::optional<Error>(const std::function<void()>&)>;

  Scheduler(EngineOptions options, Guard guard);

  /** Throws `invalid` where the request can never fit, naming `prompt` or
   * `max_tokens`. */
  static void check_fits(const Request& request, const EngineOptions& options);

  /** The row's number: later ones are higher. */
  uint64_t add(Request request);

  /** Ends the row with Finish::cancelled; nothing where it has ended already.
   */
  void cancel(uint64_t row);

  /** The next step. Empty: nothing can be done before the next commit (or at
   * all). The caller launches what isn't. */
  Plan plan();

  /** The oldest uncommitted plan's results, in its rows' order, and how long
   * its step took. Throws, nothing changed, where they don't belong to it. */
  void commit(std::vector<RowResult> results, double seconds = 0);

  /** A step failed and the runner has forgotten all steps under way. Each row
   * that was in one runs again, alone; if that fails too, it ends with this
   * error. Tokens committed before stay. */
  void failed(const Error& error);

  /** What happened to rows since the last call, in order. */
  std::vector<RowEvent> take_events();

  bool idle() const {
    return rows_.empty() && flights_.empty();
  }
  int uncommitted() const {
    return static_cast<int>(flights_.size());
  }
  EngineStats stats() const;

  /** Throws where the books are wrong. */
  void verify() const;

 private:
  struct Row {
    uint64_t number;
    Request request; // its prompt has moved to `tokens`
    int prompt; // the prompt's length
    std::vector<int32_t> end_ids;
    std::vector<int32_t> tokens; // prompt and committed output
    int sampled = 0; // tokens that planned steps sample, in all
    int placed = 0; // positions whose KV planned steps write
    int uncommitted = 0; // steps
    int slot = -1; // -1: waits
    bool joined = false; // the runner knows
    bool suspect = false; // was in a failed step
    std::vector<int32_t> blocks;
    int keyed = 0; // leading blocks that `key` stands for
    PrefixKey key = PrefixKey::start;
    std::optional<int> cached; // prompt tokens adopted at first admission
    int scored = 0; // prompt tokens that planned steps score
    int scores_taken = 0; // and committed ones
    std::vector<Scored> scores;
    Lookup lookup; // what may follow `tokens`
    double luck = 0.5; // how often lately the first guess was right, or would have been
    int drafted = 0; // positions whose KV the draft model has written
    std::vector<int32_t>
        unsure; // positions, rising, that recall Recall::more, the last one maybe yet to be computed so
    std::optional<MemoryTally> uses; // of committed tokens, where they are recorded

    int length() const {
      return prompt + sampled;
    }
    bool planned_out() const {
      return sampled > 0 ? sampled == request.max_tokens : placed == prompt;
    }
    bool decodes() const {
      return slot >= 0 && joined && sampled > 0 && !planned_out() && placed == length() - 1;
    }
    /** Whether what follows a step is known only when its results are. */
    bool waits() const {
      return request.mask || request.recall.more;
    }
    /** Leading positions whose KV is what other rows with the same key have of the same tokens. */
    int shareable() const {
      return unsure.empty() ? static_cast<int>(tokens.size()) : unsure.front();
    }
    bool unread() const {
      return static_cast<int>(tokens.size()) < length();
    }
    bool wants_scores() const {
      return request.sampling.prompt_logprobs && scored < prompt - 1;
    }
  };

  /** A row's part of an uncommitted plan. */
  struct Part {
    uint64_t row;
    int slot;
    bool sample;
    bool last; // of the prompt's tokens, where none is sampled
    bool looks; // RowStep::unsure_above
    int scores;
    int guesses = 0;
    int reason = 0; // see Confidence
  };
  struct Flight {
    std::vector<Part> parts;
    bool prefill = false;
    int tokens = 0;
    int guesses = 0; // the most of a row
    bool waited = false; // see StepShape
    bool backlog = false; // of the draft model's
  };

  int most_guesses(const Row& row) const;
  int choose_guesses(bool waited) const;
  void guess(Row& row, int count, RowStep& step, Part& part);
  bool read_draft(Row& row, RowStep& step, int& budget);
  void plan_decoding(Plan& plan, Flight& flight);
  void plan_prefill(Plan& plan, Flight& flight, int budget);
  /** False: no younger row may come before this one. */
  bool prefill(Row& row, Plan& plan, Flight& flight, int& budget);
  bool enter(Row& row);
  RowStep make_step(Row& row, int count, Flight& flight, Plan& plan);
  bool fill_mask(Row& row, std::vector<uint32_t>& words);
  void add_scores(Row& row, RowStep& step);

  bool reserve(Row& row);
  std::optional<int32_t> take_block();
  void adopt(Row& row);
  void register_blocks(Row& row);
  void release(Row& row);
  void take(Row& row, const Part& part, RowResult& result);
  void look_again(Row& row);
  void judge(Row& row, const Part& part, const std::vector<Scored>& sampled);
  /** False: it was the row's last. */
  bool take_token(Row& row, Scored sampled, std::optional<MemoryUse> use);
  void emit(Row& row, Event event);
  void end(Row& row, Finish finish, std::optional<Error> error = {});
  void erase(Row& row, Finish finish);

  EngineOptions options_;
  Guard guard_;
  Blocks blocks_;
  std::map<uint64_t, Row> rows_; // running and waiting, oldest first
  std::vector<bool> slots_; // taken
  std::deque<Flight> flights_; // oldest first
  std::vector<RowEvent> events_;
  Confidence confidence_;
  StepCost cost_;
  std::vector<bool> drafted_; // blocks that the draft model, too, has filled
  uint64_t last_row_ = 0;
  uint64_t last_plan_ = 0;
  EngineStats stats_;
};

} // namespace parallm
