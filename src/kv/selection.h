// The index keys that a layer keeps beside its KV, and the positions that they
// choose (KeySelector). Engine thread only.
#pragma once

#include "kv/cache.h"
#include "kv/step.h"

namespace parallm {

/** bool [A,L,S]: what chosen blocks, [A,L,choices] of `block` positions, hold up to each query's position; the last
 * query's is S-1. */
mx::array chosen_mask(const mx::array& blocks, int block, int keys);

class IndexKeys {
 public:
  /** `kernels`: scores by kernels/cpu, so that they don't depend on which queries come together. */
  IndexKeys(int dim, const KVOptions& options, Step*& step, bool kernels)
      : step_(step), pool_(mx::zeros({0, dim}, options.dtype)), kernels_(kernels) {}

  /** Writes the step's keys. -> for each of Step::sequences the ids of the blocks that its L queries see, rising, int32
   * [A,L,choices], A = 1 where index heads choose together, else I; nothing: they see all. */
  std::vector<std::optional<mx::array>> choose(const KeySelector& selector);

  /** The same as bool [T,A,S], S the positions of the longest sequence; nothing where all see all. */
  std::optional<mx::array> mask(const KeySelector& selector);

 private:
  mx::array scores(const mx::array& q, const mx::array& keys) const;
  mx::array choose(
      const mx::array& q,
      const mx::array& keys,
      const std::optional<mx::array>& weights,
      int position,
      const KeySelector& how) const;

  Step*& step_;
  mx::array pool_; // [blocks*block_size, index_dim] rotated
  bool kernels_;
};

} // namespace parallm
