// From logits to tokens: each row's penalties, biases, bans and filters as
// arrays over the rows of one step, so that no value takes a request off the
// batch path. Keeps, per slot, which tokens a row has seen and made, on the
// device: the host learns a token one step later than the next step needs it.
// Engine thread only.
#pragma once

#include "engine/plan.h"
#include "nn/pick.h"

#include <mlx/mlx.h>

#include <optional>
#include <vector>

namespace parallm {
namespace mx = mlx::core;

/** Log probabilities of R tokens, still on the device. */
struct Scores {
  mx::array chosen; // [R] float32
  std::optional<mx::array> ids; // [R,K] int32, most likely first
  std::optional<mx::array> top; // [R,K] float32
};

struct Sampled {
  mx::array tokens; // [R] int32
  std::optional<Scores> scores;
  std::optional<mx::array> unsure; // bool [R]: RowStep::unsure_above is passed; none where no row has one
};

/** In nats, of softmax(logits [R,V]): float32 [R]. */
mx::array entropy(const mx::array& logits);

/** Log probabilities of `tokens` [R] under softmax(logits [R,V]), and of the
 * `top` most likely tokens. */
Scores score(const mx::array& logits, const mx::array& tokens, int top);

/** One row of logits. A row of the plan with guesses has a draw for each of
 * them, too, in order: `ahead` counts the guesses before it. */
struct Draw {
  const RowStep* row;
  int ahead = 0;
};

class Sampler {
 public:
  Sampler(int slots, int vocabulary);

  void join(const Join& join);
  /** logits [R,V] in any float type; draws[r] says of which row of the plan,
   * with `sample` set, they are. `read`, int32 [R], where there are guesses: the
   * last token that each draw's logits have seen. */
  Sampled sample(mx::array logits, const std::vector<Draw>& draws, const std::optional<mx::array>& read = {});
  const Sampling& sampling(int slot) const;
  /** Each draw's temperature, filters and random number. */
  PickValues pick_values(const std::vector<Draw>& draws) const;

 private:
  struct Slot {
    Sampling sampling;
    std::vector<int32_t> end_ids;
  };

  mx::array penalize(
      const mx::array& logits,
      const std::vector<Draw>& draws,
      const std::vector<int>& penalized,
      const std::optional<mx::array>& read);
  void count(
      const std::vector<Draw>& draws,
      const std::vector<int>& penalized,
      const mx::array& tokens,
      const std::optional<mx::array>& read,
      const std::optional<mx::array>& unsure);

  int vocabulary_;
  std::vector<Slot> slots_;
  // [slots, V] float32, made when the first row with a penalty joins: whether
  // the prompt has the token; how often the output has it.
  std::optional<mx::array> in_prompt_;
  std::optional<mx::array> made_;
};

} // namespace parallm
