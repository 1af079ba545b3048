// The runner that owns a model and its caches: a plan's rows become one flat
// forward pass, then tokens. The next step is launched before the last one's
// tokens are read: a decoding row's id is taken, on the device, from what its
// slot sampled last. One device-to-host sync a step. Engine thread only.
#pragma once

#include "engine/drafter.h"
#include "engine/plan.h"
#include "engine/sampler.h"
#include "kv/recall.h"
#include "models/model.h"

#include <deque>
#include <memory>

namespace parallm {

class ModelRunner : public Runner {
 public:
  /** `drafter`: for plans whose guesses have no ids. */
  ModelRunner(
      std::unique_ptr<Model> model,
      std::unique_ptr<Caches> caches,
      int slots,
      std::unique_ptr<Drafter> drafter = nullptr);

  void launch(const Plan& plan) override;
  std::vector<RowResult> collect() override;
  void reset() override;

  Model& model();

 private:
  /** A launched step: what to read once it is done. */
  struct Step {
    std::vector<RowStep> rows;
    std::vector<int> sampled; // which of rows
    std::optional<mx::array> read; // int32, where there are guesses: the token that each draw follows
    std::vector<int> scored;
    std::vector<int> tops; // each row's `logprobs`: by the time of reading
                           // its slot may belong to another row
    std::optional<Sampled> tokens;
    std::vector<Scores> scores; // one for each of `scored`
    std::vector<std::shared_ptr<const MemoryRecord>> records; // one for each draw; null: not recorded
    std::vector<mx::array> outputs;
  };

  mx::array ids(const Plan& plan, Step& step);
  void score_prompt(Step& step, const mx::array& hidden);
  void sample(Step& step, const mx::array& ids, const mx::array& hidden);

  std::unique_ptr<Model> model_;
  std::unique_ptr<Caches> caches_;
  std::unique_ptr<Drafter> drafter_;
  Sampler sampler_;
  mx::array last_tokens_; // [slots] int32
  struct Recalling {
    std::weak_ptr<const Recalled> memories, more;
  };
  std::vector<Recalling> recalled_; // by slot; the scheduler's row holds them
  std::deque<Step> under_way_;
};

} // namespace parallm
