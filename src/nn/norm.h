// Normalization over the last axis. Engine thread only.
#pragma once

#include "nn/weights.h"

namespace parallm {

/** Root mean square norm (Zhang and Sennrich, arXiv 1910.07467): x / rms(x) *
 * weight. */
class RMSNorm {
 public:
  /** `offset` is added to the weights: Gemma's checkpoints hold weight - 1. */
  RMSNorm(Weights& weights, const std::string& name, int dims, float eps, float offset = 0);

  /** x [...,dims], of the same shape. */
  mx::array operator()(const mx::array& x) const;

 private:
  mx::array weight_; // [dims]
  float eps_;
};

/** x / rms(x), x [...,D]. */
mx::array rms_norm(const mx::array& x, float eps);

/** Layer norm (Ba et al., arXiv 1607.06450): (x - mean) / deviation * weight +
 * bias. */
class LayerNorm {
 public:
  /** The bias is used wherever `<name>.bias` exists; `bias`: it must. Without
   * `affine` there is no weight either. */
  LayerNorm(Weights& weights, const std::string& name, int dims, float eps, bool bias = false, bool affine = true);

  /** x [...,dims], of the same shape. */
  mx::array operator()(const mx::array& x) const;

 private:
  std::optional<mx::array> weight_; // [dims]
  std::optional<mx::array> bias_;
  float eps_;
};

} // namespace parallm
