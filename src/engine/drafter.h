// A draft model: a small one with the same vocabulary, which guesses what the
// model is going to say (Leviathan et al., arXiv 2211.17192). Its KV lies in
// blocks of the same numbers as the model's, so that the scheduler's block
// tables hold for both. Engine thread only.
#pragma once

#include "engine/plan.h"
#include "engine/sampler.h"
#include "models/model.h"

#include <memory>
#include <optional>

namespace parallm {

class Drafter {
 public:
  Drafter(std::unique_ptr<Model> model, std::unique_ptr<Caches> caches);

  struct Guesses {
    mx::array read; // hangs on the KV of all `draft_ids`
    std::optional<mx::array> ids; // int32 [sum of the rows' guesses], row after row
  };
  /** Reads each row's `draft_ids`, then draws its guesses one after another,
   * with the row's own temperature, filters and draws: the more alike the
   * models, the more often both draw the same. Ids are below `vocabulary`. */
  Guesses guess(const Plan& plan, const Sampler& sampler, int vocabulary);

 private:
  mx::array draw(const mx::array& hidden, const std::vector<const RowStep*>& rows, int ahead, const Sampler& sampler);

  std::unique_ptr<Model> model_;
  std::unique_ptr<Caches> caches_;
};

} // namespace parallm
