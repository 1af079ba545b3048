// Hand-written stand-ins. FakeRunner's next token is a pure function of all
// tokens of the sequence so far, which it reads back through the block tables
// it is given from a simulated KV pool, as a model would: a wrong table,
// position, order, share or join changes the output (or throws).
#pragma once

#include "engine/engine.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <map>
#include <set>
#include <stdexcept>

namespace parallm::fakes {

constexpr int vocabulary = 48;
constexpr int32_t end_id = 1;
constexpr int32_t poison_id = 2; // a step that reads it fails
constexpr int32_t first_plain_id = 3;

inline uint64_t mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9E3779B97F4A7C15;
  return hash ^ (hash >> 29);
}

inline uint64_t hash_of(std::span<const int32_t> tokens) {
  uint64_t hash = 7;
  for (int32_t token : tokens) {
    hash = mix(hash, static_cast<uint32_t>(token));
  }
  return hash;
}

/** The token after `tokens`: one of the allowed, never poison; at temperature
 * 0 mostly the one three before, so that there is something to guess. */
inline int32_t next_token(
    std::span<const int32_t> tokens,
    const Sampling& sampling,
    int draw_index,
    std::span<const int32_t> end_ids,
    std::span<const uint32_t> allowed) {
  std::vector<int32_t> can;
  for (int32_t id = 0; id < vocabulary; ++id) {
    const bool ends = std::find(end_ids.begin(), end_ids.end(), id) != end_ids.end();
    if (id != poison_id && !(ends && draw_index < sampling.min_tokens) &&
        (allowed.empty() || (allowed[id / 32] >> (id % 32) & 1))) {
      can.push_back(id);
    }
  }
  const bool repeats = sampling.temperature == 0 && tokens.size() >= 3 && hash_of(tokens) % 8 != 0;
  if (repeats && std::find(can.begin(), can.end(), tokens[tokens.size() - 3]) != can.end()) {
    return tokens[tokens.size() - 3];
  }
  return can.at(mix(mix(hash_of(tokens), sampling.seed), draw_index) % can.size());
}

/** Whether a row that looks again is unsure after `tokens`. */
inline bool is_unsure(std::span<const int32_t> tokens) {
  return hash_of(tokens) % 3 == 0;
}
constexpr int32_t more_mark = 1000; // added, in the pool, to a token whose position recalls more

inline float score_of(std::span<const int32_t> tokens) {
  return static_cast<float>(hash_of(tokens) % 4096);
}

/** Allows ids of one residue, which depends on what it accepted so far; throws
 * at its `throws_at`-th call. */
class FakeMask : public TokenMask {
 public:
  explicit FakeMask(int throws_at = -1) : throws_at_(throws_at) {}
  void allowed(std::span<uint32_t> words) override {
    if (calls_++ == throws_at_) {
      throw std::runtime_error("mask");
    }
    for (int32_t id = 0; id < vocabulary; ++id) {
      if (id % 3 == static_cast<int>(state_ % 3)) {
        words[id / 32] |= 1u << (id % 32);
      }
    }
  }
  void accept(int32_t token) override {
    state_ = mix(state_, token);
  }

 private:
  int throws_at_;
  int calls_ = 0;
  uint64_t state_ = 0;
};

class FakeRunner : public Runner {
 public:
  FakeRunner(int blocks, int block_size)
      : size_(block_size), pool_(blocks * block_size, -1), draft_pool_(blocks * block_size, -1) {}

  std::set<uint64_t> fail_launch, fail_collect; // plan numbers, once each
  std::atomic<int> launches = 0;

  void launch(const Plan& plan) override {
    require(under_way_.size() < 2, "at most two steps are under way");
    ++launches;
    if (fail_launch.erase(plan.number)) {
      throw std::runtime_error("launch");
    }
    for (const Join& join : plan.joins) {
      slots_[join.slot] = {join, join.prompt};
      auto& history = slots_[join.slot].history;
      history.insert(history.end(), join.generated.begin(), join.generated.end());
    }
    auto rows = plan.rows;
    for (RowStep& row : rows) {
      draft(row);
      write(row);
    }
    Step step{plan.number, {}, false};
    for (const RowStep& row : rows) {
      step.results.push_back(read(row, step.poisoned));
    }
    under_way_.push_back(std::move(step));
  }

  std::vector<RowResult> collect() override {
    require(!under_way_.empty(), "there is a step to collect");
    Step step = std::move(under_way_.front());
    under_way_.pop_front();
    if (step.poisoned || fail_collect.erase(step.number)) {
      throw std::runtime_error("collect");
    }
    return std::move(step.results);
  }

  void reset() override {
    under_way_.clear();
    slots_.clear();
    std::fill(pool_.begin(), pool_.end(), -1);
    std::fill(draft_pool_.begin(), draft_pool_.end(), -1);
  }

 private:
  struct Slot {
    Join join;
    std::vector<int32_t> history;
  };
  struct Step {
    uint64_t number;
    std::vector<RowResult> results;
    bool poisoned;
  };

  static void require(bool holds, const char* what) {
    if (!holds) {
      throw std::logic_error(what);
    }
  }

  int32_t& place(const RowStep& row, int position) {
    return pool_.at(index(row, position));
  }
  size_t index(const RowStep& row, int position) const {
    return row.blocks.at(position / size_) * size_ + position % size_;
  }

  /** A draft model that is right three times of four, and reads back its own
   * KV pool. */
  void draft(RowStep& row) {
    for (size_t i = 0; i < row.draft_ids.size(); ++i) {
      draft_pool_.at(index(row, row.draft_start + i)) = row.draft_ids[i];
    }
    if (row.draft_ids.empty() || row.guesses == 0) {
      return;
    }
    require(row.ids.size() == 1, "a draft model's guesses have no ids");
    require(row.draft_start + row.draft_ids.size() == size_t(row.start) + 1, "the draft model has read the last token");
    const Slot& slot = slots_.at(row.slot);
    std::vector<int32_t> tokens;
    for (int p = 0; p <= row.start; ++p) {
      tokens.push_back(draft_pool_.at(index(row, p)));
    }
    require(tokens == slot.history, "the draft model has read the row's tokens");
    for (int i = 0; i < row.guesses; ++i) {
      int32_t id = next_token(tokens, slot.join.sampling, row.draw_index + i, slot.join.end_ids, {});
      if (hash_of(tokens) % 4 == 0) {
        id = first_plain_id;
      }
      row.ids.push_back(id);
      tokens.push_back(id);
      if (i + 1 < row.guesses) {
        draft_pool_.at(index(row, row.start + 1 + i)) = id;
      }
    }
  }

  void write(const RowStep& row) {
    require(row.ids.empty() ? row.count == 1 : row.ids.size() == size_t(row.count), "as many ids as tokens");
    for (int i = 0; i < row.count; ++i) {
      const bool more = std::find(row.more.begin(), row.more.end(), i) != row.more.end();
      place(row, row.start + i) =
          (row.ids.empty() ? slots_.at(row.slot).history.back() : row.ids[i]) + (more ? more_mark : 0);
    }
  }

  RowResult read(const RowStep& row, bool& poisoned) {
    std::vector<int32_t> tokens, kv;
    const Recall& recall = slots_.at(row.slot).join.recall;
    for (int p = 0; p < row.start + row.count; ++p) {
      kv.push_back(place(row, p));
      tokens.push_back(kv.back() % more_mark);
      poisoned = poisoned || tokens.back() == poison_id;
    }
    Slot& slot = slots_.at(row.slot);
    RowResult result;
    result.slot = row.slot;
    for (size_t i = 0; i < row.score_ids.size(); ++i) {
      auto seen = std::span(tokens).first(row.start + row.score + i + 1);
      result.prompt.push_back({{row.score_ids[i], score_of(seen)}, {}});
    }
    if (row.sample) {
      auto guesses = tokens.end() - row.guesses;
      require(std::equal(tokens.begin(), guesses, slot.history.begin(), slot.history.end()), "KV and history are one");
      const int prompt = static_cast<int>(slot.join.prompt.size());
      for (int p = 0; p < row.start + row.count; ++p) {
        const bool last = p + 1 == row.start + row.count && row.unsure_above > 0;
        const bool more = recall.more && p + 1 >= prompt && !last && is_unsure(std::span(slot.history).first(p + 1));
        require((kv[p] >= more_mark) == more, "unsure positions alone recall more");
      }
      if (row.unsure_above > 0 && is_unsure(slot.history)) {
        result.unsure = true;
        return result;
      }
      const int made = static_cast<int>(slot.history.size() - slot.join.prompt.size());
      require(row.draw_index == made, "draw_index counts the output");
      require(row.rope_length == static_cast<int>(slot.join.prompt.size()), "rope_length is the prompt's");
      for (int i = 0;; ++i) {
        const int32_t id =
            next_token(slot.history, slot.join.sampling, row.draw_index + i, slot.join.end_ids, row.allowed);
        slot.history.push_back(id);
        result.sampled.push_back({{id, 0}, {}});
        if (i == row.guesses || guesses[i] != id) {
          break;
        }
      }
    }
    return result;
  }

  int size_;
  std::vector<int32_t> pool_, draft_pool_;
  std::map<int, Slot> slots_;
  std::deque<Step> under_way_;
};

struct Output {
  std::vector<int32_t> tokens;
  Finish finish = Finish::none;
  std::vector<Scored> prompt;
};

/** What a request gives, by definition. */
inline Output alone(const Request& request, TokenMask* mask) {
  Output out;
  const Sampling& sampling = request.sampling;
  std::vector<int32_t> ends = sampling.stop_token_ids;
  if (!sampling.ignore_eos) {
    ends.push_back(end_id);
  }
  auto tokens = request.prompt;
  for (size_t i = 1; sampling.prompt_logprobs && i < tokens.size(); ++i) {
    out.prompt.push_back({{tokens[i], score_of(std::span(tokens).first(i))}, {}});
  }
  while (static_cast<int>(out.tokens.size()) < request.max_tokens) {
    std::vector<uint32_t> words;
    if (mask) {
      words.assign((vocabulary + 31) / 32, 0);
      mask->allowed(words);
    }
    const int32_t id = next_token(tokens, sampling, out.tokens.size(), ends, words);
    tokens.push_back(id);
    out.tokens.push_back(id);
    if (std::find(ends.begin(), ends.end(), id) != ends.end()) {
      out.finish = Finish::stop;
      return out;
    }
    if (mask) {
      mask->accept(id);
    }
  }
  out.finish = Finish::length;
  return out;
}

} // namespace parallm::fakes
