#include "nn/mlp.h"

namespace parallm {

GatedMLP::GatedMLP(Weights& weights, const std::string& name, int dims, int hidden, Activation act, bool bias)
    : act_(act),
      gate_proj(weights, name + ".gate_proj", hidden, dims, bias),
      up_proj(weights, name + ".up_proj", hidden, dims, bias),
      down_proj(weights, name + ".down_proj", dims, hidden, bias) {}

mx::array GatedMLP::operator()(const mx::array& x) const {
  return down_proj(gated(act_, gate_proj(x), up_proj(x)));
}

} // namespace parallm
