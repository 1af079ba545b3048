// Speculative decoding (Leviathan et al., arXiv 2211.17192), decided: what to
// guess and how far. A row's step computes its guesses beside its last token,
// and the model's own draw at each place is what the row takes, up to and with
// the first that is not the guess. Draws depend on a row's seed and place alone
// (sampling.h), so an answer is the same with guesses and without, sampled ones
// too. Pure data: no clock, no thread, no tensor.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

namespace parallm {

/** What may follow `tokens`: what followed the longest earlier match of their
 * end (prompt lookup decoding), the latest of equally long ones. */
struct Lookup {
  std::vector<int32_t> guesses; // at most `most`
  int matched = 0; // tokens; at least `shortest_match` where there are guesses
};
constexpr int shortest_match = 2, longest_match = 8;
Lookup look_up(std::span<const int32_t> tokens, int most);

/** How often a guess is right, learned from all rows' steps, one figure for
 * each kind of reason to believe it: a draft model's, or a match of so many
 * tokens. */
class Confidence {
 public:
  static constexpr int draft_model = 0; // else Lookup::matched

  /** `right` of `made` guesses were right; at most one was wrong: what came
   * after it was not judged. */
  void learn(int reason, int made, int right);
  /** Nothing was guessed: what was learned counts a little less, so that it is tried again some day. */
  void drift(int reason);
  /** That a guess is right where the one before it was. */
  double of(int reason) const {
    return values_[reason];
  }

 private:
  std::array<int, longest_match + 1> judged_{};
  static constexpr std::array<double, longest_match + 1> usual = {0.7, 0, 0.35, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8};
  std::array<double, longest_match + 1> values_ = usual;
};

/** A step of decoding rows. */
struct StepShape {
  int tokens;
  int passes = 0; // of the draft model
  bool waited = false; // it was launched after the one before was read, not while that ran
};

/** What a step costs, fitted to the steps so far: seconds = a + b * tokens + c *
 * passes + d * waited. Later steps weigh more. */
class StepCost {
 public:
  void learn(const StepShape& shape, double seconds);
  /** In a unit of its own, where nothing is known. */
  double of(const StepShape& shape) const;

 private:
  static constexpr int terms = 4;
  std::array<std::array<double, terms>, terms> products_{}; // of the terms with each other
  std::array<double, terms> with_seconds_{};
  std::array<double, terms> fit_ = {1, 0.05, 0.1, 0.1}; // at first what is usual, in no unit
};

/** A decoding row that could guess. */
struct Prospect {
  int most; // guesses
  double confidence;
};

/** How many guesses to make, each row as many as it can: the number with which
 * a step that waited is expected to give more tokens a second than any other
 * and than `plain`, all rows' step without guesses. 0: there is none. */
int best_guesses(const StepShape& plain, std::span<const Prospect> prospects, bool draft_model, const StepCost& cost);

} // namespace parallm
