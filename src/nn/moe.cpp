#include "nn/moe.h"

#include "base/error.h"
#include "kernels/cpu/ops.h"
#include "nn/device.h"

namespace parallm {

namespace {

struct Order {
  mx::array tokens, experts, places;
};

/** MLX's sorts, where order_by_group has no kernel. */
Order order_by_sorting(const mx::array& experts) {
  auto flat = mx::flatten(experts);
  auto order = mx::argsort(flat);
  auto tokens = mx::floor_divide(mx::astype(order, mx::int32), mx::array(experts.shape(1)));
  return {tokens, mx::take(flat, order, 0), mx::argsort(order)};
}

mx::array shares(const mx::array& x) {
  return mx::softmax(mx::astype(x, mx::float32), -1, true);
}

mx::array normalized(const mx::array& weights) {
  return weights / mx::sum(weights, -1, true);
}

/** scores [T,E] with those outside each token's best groups at `how.outside`: at 0 in most of mlx-lm and transformers,
 * where a bias may still leave them above others. */
mx::array keep_groups(const mx::array& scores, const Selection& how) {
  int count = scores.shape(0), width = scores.shape(1);
  auto grouped = mx::reshape(scores, {count, how.groups, width / how.groups});
  auto best = mx::sum(mx::topk(grouped, std::min(how.group_terms, width / how.groups), 2), 2); // [T,G]
  auto kept = top_experts(best, how.kept_groups);
  auto ones = mx::ones(kept.shape(), mx::float32);
  auto mask = mx::put_along_axis(mx::zeros(best.shape(), mx::float32), kept, ones, 1);
  auto all = mx::where(mx::greater(mx::expand_dims(mask, 2), mx::array(0.0f)), grouped, mx::array(how.outside));
  return mx::reshape(all, {count, width});
}

} // namespace

mx::array top_experts(const mx::array& scores, int k) {
  if (on_cpu()) {
    return cpu::greatest(mx::astype(scores, mx::float32), k);
  }
  auto order = mx::argsort(mx::negative(scores), 1);
  return mx::astype(mx::slice(order, {0, 0}, {scores.shape(0), k}), mx::int32);
}

Choice choose_by_softmax(const mx::array& logits, int k, bool normalize) {
  if (normalize) {
    return choose_then_softmax(logits, k);
  }
  auto scores = shares(logits);
  auto experts = top_experts(scores, k);
  return {experts, mx::take_along_axis(scores, experts, 1)};
}

Choice choose_then_softmax(const mx::array& logits, int k) {
  auto experts = top_experts(logits, k);
  return {experts, shares(mx::take_along_axis(logits, experts, 1))};
}

Choice choose_by_score(const mx::array& scores, const std::optional<mx::array>& bias, const Selection& how) {
  auto biased = bias ? scores + *bias : scores;
  auto experts = top_experts(how.groups > 1 ? keep_groups(biased, how) : biased, how.choices);
  auto weights = mx::take_along_axis(scores, experts, 1);
  if (how.normalize && how.choices > 1) {
    weights = normalized(weights);
  }
  return {experts, how.scale == 1 ? weights : weights * mx::array(how.scale)};
}

Routing::Routing(const mx::array& experts, int count) : tokens_(0), experts_(0), places_(0) {
  auto order = [&]() -> Order {
    if (!on_cpu()) {
      return order_by_sorting(experts);
    }
    auto kernel = cpu::order_by_group(experts, count);
    return {kernel.rows, kernel.groups, kernel.places};
  }();
  tokens_ = order.tokens;
  experts_ = order.experts;
  places_ = order.places;
}

mx::array Routing::gather(const mx::array& x) const {
  return mx::take(x, tokens_, 0);
}

mx::array Routing::weigh(const mx::array& y, const mx::array& weights) const {
  if (on_cpu()) {
    return cpu::weighted_sum(y, places_, weights);
  }
  auto terms = mx::reshape(mx::take(y, places_, 0), {weights.shape(0), weights.shape(1), y.shape(1)});
  return mx::astype(mx::sum(terms * mx::expand_dims(weights, 2), 1), y.dtype());
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
    : count_(count),
      act_(std::move(act)),
      gate_proj(weights, name + ".gate_proj", count, hidden, dims, bias),
      up_proj(weights, name + ".up_proj", count, hidden, dims, bias),
      down_proj(weights, name + ".down_proj", count, dims, hidden, bias) {}

mx::array SwitchGLU::operator()(const mx::array& x, const Choice& choice) const {
  Routing routing(choice.experts, count_);
  auto rows = routing.gather(x);
  auto h = act_(gate_proj(rows, routing.experts()), up_proj(rows, routing.experts()));
  return routing.weigh(down_proj(h, routing.experts()), choice.weights);
}

SparseMoe::SparseMoe(
    Weights& weights,
    const std::string& gate,
    const std::string& experts,
    int count,
    int dims,
    int hidden,
    Choose choose,
    SwitchGLU::Act act)
    : choose_(std::move(choose)),
      gate_(weights, gate, count, dims),
      experts_(weights, experts, count, dims, hidden, std::move(act)) {}

mx::array SparseMoe::operator()(const mx::array& x) const {
  return experts_(x, choose_(gate_(x)));
}

SwitchMLP::SwitchMLP(
    Weights& weights,
    const std::string& name,
    int count,
    int dims,
    int hidden,
    Activation act,
    bool bias)
    : count_(count),
      act_(act),
      fc1(weights, name + ".fc1", count, hidden, dims, bias),
      fc2(weights, name + ".fc2", count, dims, hidden, bias) {}

mx::array SwitchMLP::operator()(const mx::array& x, const Choice& choice) const {
  Routing routing(choice.experts, count_);
  auto h = act_(fc1(routing.gather(x), routing.experts()));
  return routing.weigh(fc2(h, routing.experts()), choice.weights);
}

MultiLinear::MultiLinear(Weights& weights, const std::string& name, int heads, int outputs, int inputs)
    : heads_(heads), matrix_(weights, name, outputs, inputs, heads) {}

mx::array MultiLinear::operator()(const mx::array& x) const {
  int count = x.shape(0);
  auto rows = mx::reshape(mx::swapaxes(x, 0, 1), {heads_ * count, x.shape(2)});
  auto y = matrix_.multiply_by_group(rows, mx::repeat(mx::arange(heads_), count), {});
  return mx::swapaxes(mx::reshape(y, {heads_, count, y.shape(1)}), 0, 1);
}

const ExpertNames numbered_projections{{"w1", "gate_proj"}, {"w2", "down_proj"}, {"w3", "up_proj"}};
const ExpertNames named_projections{{"gate_proj", "gate_proj"}, {"down_proj", "down_proj"}, {"up_proj", "up_proj"}};

void stack_experts(
    Weights& weights,
    const std::string& from,
    const std::string& to,
    int count,
    const ExpertNames& names) {
  for (auto& [theirs, ours] : names) {
    weights.stack(fmt::format("{}.{{}}.{}", from, theirs), count, fmt::format("{}.{}", to, ours));
  }
}

void split_gate_up(Weights& weights, const std::string& from, const std::string& to, bool transposed) {
  auto both = weights.pull(from);
  if (!both) {
    return;
  }
  if (both->ndim() != 3 || both->shape(transposed ? 2 : 1) % 2 != 0) {
    fail(Kind::invalid, "[moe] {} must hold a gate and an up matrix for each expert", from);
  }
  auto parts = mx::split(transposed ? mx::swapaxes(*both, 1, 2) : *both, 2, 1);
  weights.put(to + ".gate_proj.weight", mx::contiguous(parts[0]));
  weights.put(to + ".up_proj.weight", mx::contiguous(parts[1]));
}

void transpose_experts(Weights& weights, const std::string& from, const std::string& to) {
  auto matrices = weights.pull(from);
  if (!matrices) {
    return;
  }
  if (matrices->ndim() != 3) {
    fail(Kind::invalid, "[moe] {} must hold a matrix for each expert; got {} axes", from, matrices->ndim());
  }
  weights.put(to + ".weight", mx::contiguous(mx::swapaxes(*matrices, 1, 2)));
}

} // namespace parallm
