// Root mean square layer normalization (Zhang and Sennrich, arXiv 1910.07467).
// Engine thread only.
#pragma once

#include "nn/weights.h"

namespace parallm {

class RMSNorm {
 public:
  RMSNorm(Weights& weights, const std::string& name, int dims, float eps);

  /** x [T,dims] -> [T,dims]. */
  mx::array operator()(const mx::array& x) const;

 private:
  mx::array weight_; // [dims]
  float eps_;
};

} // namespace parallm
