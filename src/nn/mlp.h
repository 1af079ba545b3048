// The gated feed-forward block of most decoders. Engine thread only.
#pragma once

#include "nn/activation.h"
#include "nn/linear.h"

namespace parallm {

/** down_proj(act(gate_proj(x)) * up_proj(x)) (Shazeer, arXiv 2002.05202). */
class GatedMLP {
 public:
  GatedMLP(Weights& weights, const std::string& name, int dims, int hidden, Activation act = silu, bool bias = false);

  /** x [T,dims] -> [T,dims]. */
  mx::array operator()(const mx::array& x) const;

 private:
  Activation act_;
  Linear gate_proj;
  Linear up_proj;
  Linear down_proj;
};

} // namespace parallm
