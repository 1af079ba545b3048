#include "nn/mlp.h"

namespace parallm {

GatedMLP::GatedMLP(
    Weights& weights,
    const std::string& name,
    int dims,
    int hidden,
    Activation act,
    bool bias,
    const MLPNames& names)
    : act_(act),
      gate_proj(weights, name + "." + names.gate, hidden, dims, bias),
      up_proj(weights, name + "." + names.up, hidden, dims, bias),
      down_proj(weights, name + "." + names.down, dims, hidden, bias) {}

mx::array GatedMLP::operator()(const mx::array& x) const {
  return down_proj(gated(act_, gate_proj(x), up_proj(x)));
}

GluMLP::GluMLP(Weights& weights, const std::string& name, int dims, int hidden, GluAct act)
    : act_(std::move(act)),
      gate_proj(weights, name + ".gate_proj", hidden, dims),
      up_proj(weights, name + ".up_proj", hidden, dims),
      down_proj(weights, name + ".down_proj", dims, hidden) {}

mx::array GluMLP::operator()(const mx::array& x) const {
  return down_proj(act_(gate_proj(x), up_proj(x)));
}

FusedGatedMLP::FusedGatedMLP(Weights& weights, const std::string& name, int dims, int hidden, Activation act)
    : act_(act),
      gate_up_proj(weights, name + ".gate_up_proj", 2 * hidden, dims),
      down_proj(weights, name + ".down_proj", dims, hidden) {}

mx::array FusedGatedMLP::operator()(const mx::array& x) const {
  auto parts = mx::split(gate_up_proj(x), 2, -1);
  return down_proj(gated(act_, parts[0], parts[1]));
}

MLP::MLP(
    Weights& weights,
    const std::string& name,
    int dims,
    int hidden,
    Activation act,
    bool bias,
    const MLPNames& names)
    : act_(act),
      up(weights, name + "." + names.up, hidden, dims, bias),
      down(weights, name + "." + names.down, dims, hidden, bias) {}

mx::array MLP::operator()(const mx::array& x) const {
  return down(act_(up(x)));
}

} // namespace parallm
