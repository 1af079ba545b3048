// The index keys that a layer keeps beside its KV, and the positions that they
// choose (KeySelector). Engine thread only.
#pragma once

#include "kv/cache.h"
#include "kv/step.h"

namespace parallm {

/** bool [A,L,S]: what chosen blocks, [A,L,choices] of KeySelector::block, hold up to each query's position; the last
 * query's is S-1. */
mx::array chosen_mask(const mx::array& blocks, const KeySelector& how, int positions);

class IndexKeys {
 public:
  /** `kernels`: scores by kernels/cpu, so that they don't depend on which queries come together. */
  IndexKeys(int dim, const KVOptions& options, Step*& step, bool kernels)
      : step_(step), pool_(mx::zeros({0, dim}, options.dtype)), kernels_(kernels) {}

  /** Writes the step's keys. -> for each of Step::sequences the ids of the blocks that its L queries see, rising, int32
   * [A,L,choices], A = 1 where index heads choose together, else I; nothing: they see all. */
  std::vector<std::optional<mx::array>> choose(const KeySelector& selector);

  /** The same as positions, S those of the longest sequence. */
  Chosen mask(const KeySelector& selector);

 private:
  mx::array scores(const mx::array& q, const mx::array& keys) const;
  mx::array choose(
      const mx::array& q,
      const mx::array& keys,
      const std::optional<mx::array>& weights,
      const Chosen& within,
      int position,
      const KeySelector& how) const;

  Step*& step_;
  mx::array pool_; // [blocks*block_size, index_dim] rotated
  bool kernels_;
};

} // namespace parallm
