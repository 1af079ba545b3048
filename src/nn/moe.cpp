#include "nn/moe.h"

namespace parallm {

Routing::Routing(const mx::array& indices) : choices(indices.shape(1)), tokens(0), experts(0), places(0) {
  auto flat = mx::astype(mx::flatten(indices), mx::int32);
  auto order = mx::argsort(flat);
  experts = mx::take(flat, order, 0);
  tokens = mx::floor_divide(mx::astype(order, mx::int32), mx::array(choices));
  places = mx::argsort(order);
}

mx::array Routing::gather(const mx::array& x) const {
  return mx::take(x, tokens, 0);
}

mx::array Routing::scatter(const mx::array& y) const {
  return mx::reshape(mx::take(y, places, 0), {-1, choices, y.shape(1)});
}

Experts::Experts(Weights& weights, const std::string& name, int count, int outputs, int inputs, bool bias)
    : matrix_(weights, name, outputs, inputs, count) {
  if (bias || weights.has(name + ".bias")) {
    bias_ = weights.take(name + ".bias", {count, outputs}, weights.dtype());
  }
}

mx::array Experts::operator()(const mx::array& x, const mx::array& which) const {
  return matrix_.multiply_by_group(x, which, bias_);
}

SwitchGLU::SwitchGLU(Weights& weights, const std::string& name, int count, int dims, int hidden, Act act, bool bias)
    : act_(std::move(act)),
      gate_proj(weights, name + ".gate_proj", count, hidden, dims, bias),
      up_proj(weights, name + ".up_proj", count, hidden, dims, bias),
      down_proj(weights, name + ".down_proj", count, dims, hidden, bias) {}

mx::array SwitchGLU::operator()(const mx::array& x, const mx::array& indices) const {
  Routing routing(indices);
  auto rows = routing.gather(x);
  auto h = act_(gate_proj(rows, routing.experts), up_proj(rows, routing.experts));
  return routing.scatter(down_proj(h, routing.experts));
}

SwitchMLP::SwitchMLP(
    Weights& weights,
    const std::string& name,
    int count,
    int dims,
    int hidden,
    Activation act,
    bool bias)
    : act_(act),
      fc1(weights, name + ".fc1", count, hidden, dims, bias),
      fc2(weights, name + ".fc2", count, dims, hidden, bias) {}

mx::array SwitchMLP::operator()(const mx::array& x, const mx::array& indices) const {
  Routing routing(indices);
  auto h = act_(fc1(routing.gather(x), routing.experts));
  return routing.scatter(fc2(h, routing.experts));
}

MultiLinear::MultiLinear(Weights& weights, const std::string& name, int heads, int outputs, int inputs)
    : heads_(heads), matrix_(weights, name, outputs, inputs, heads) {}

mx::array MultiLinear::operator()(const mx::array& x) const {
  int count = x.shape(0);
  auto rows = mx::reshape(mx::swapaxes(x, 0, 1), {heads_ * count, x.shape(2)});
  auto y = matrix_.multiply_by_group(rows, mx::repeat(mx::arange(heads_), count), {});
  return mx::swapaxes(mx::reshape(y, {heads_, count, y.shape(1)}), 0, 1);
}

mx::array top_experts(const mx::array& scores, int k) {
  auto order = mx::argsort(mx::negative(scores), 1);
  return mx::astype(mx::slice(order, {0, 0}, {scores.shape(0), k}), mx::int32);
}

mx::array weigh(const mx::array& y, const mx::array& weights) {
  auto sum = mx::sum(y * mx::expand_dims(weights, 2), 1);
  return mx::astype(sum, y.dtype());
}

} // namespace parallm
