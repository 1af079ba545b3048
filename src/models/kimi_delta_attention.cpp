#include "models/kimi_delta_attention.h"

#include "models/gated_delta_net.h"
#include "nn/activation.h"

#include <cmath>

namespace parallm {

Config kimi_with_deepseek_names(const Config& given) {
  auto config = with_names(
      given,
      {{"n_routed_experts", "num_experts"},
       {"n_shared_experts", "num_shared_experts"},
       {"num_experts_per_tok", "num_experts_per_token"},
       {"norm_topk_prob", "moe_renormalize"},
       {"n_group", "num_expert_group"}});
  config.json.erase("rope_scaling"); // there is no rotation
  return config;
}

KimiDeltaAttention::Gate::Gate(Weights& weights, const std::string& name, const KimiDeltaArgs& args, bool narrow)
    : to_narrow(narrow ? std::optional(Linear(weights, name + "_a_proj", args.head_dim, args.hidden)) : std::nullopt),
      to_wide(weights, name + (narrow ? "_b_proj" : "_proj"), args.width(), narrow ? args.head_dim : args.hidden) {}

mx::array KimiDeltaAttention::Gate::operator()(const mx::array& x) const {
  return to_wide(to_narrow ? (*to_narrow)(x) : x);
}

KimiDeltaAttention::KimiDeltaAttention(const KimiDeltaArgs& args, Weights& weights, const std::string& name)
    : args_(args),
      f_(weights, name + ".f", args, args.narrow_decay),
      g_(weights, name + ".g", args, args.narrow_gate),
      b_proj(weights, name + ".b_proj", args.heads, args.hidden),
      a_([&] {
        auto shape = args.flat ? mx::Shape{args.heads} : mx::Shape{1, 1, args.heads, 1};
        return mx::exp(mx::flatten(weights.take(name + ".A_log", shape, mx::float32)));
      }()),
      dt_bias(weights.take(name + ".dt_bias", {args.width()}, mx::float32)),
      o_norm(weights, name + ".o_norm", args.head_dim, args.eps),
      o_proj(weights, name + ".o_proj", args.hidden, args.width()) {
  for (auto* part : args.fused ? std::vector{"qkv"} : std::vector{"q", "k", "v"}) {
    int width = args.fused ? 3 * args.width() : args.width();
    projections_.emplace_back(weights, fmt::format("{}.{}_proj", name, part), width, args.hidden);
    convs_.emplace_back(weights, fmt::format("{}.{}{}", name, part, args.conv), width, args.kernel, false, true);
  }
}

mx::array KimiDeltaAttention::by_head(const mx::array& x) const {
  return mx::reshape(x, {x.shape(0), args_.heads, args_.head_dim});
}

mx::array KimiDeltaAttention::log_decay(const mx::array& x) const {
  auto dt = by_head(mx::astype(f_(x), mx::float32) + dt_bias);
  auto a = mx::reshape(a_, {1, args_.heads, 1});
  if (args_.least_log_decay) {
    return mx::array(*args_.least_log_decay) * mx::sigmoid(a * dt);
  }
  return mx::negative(a) * softplus(dt);
}

mx::array KimiDeltaAttention::operator()(const mx::array& x, Cache& cache) const {
  auto beta = mx::sigmoid(mx::astype(b_proj(x), mx::float32));
  std::vector<mx::array> inputs;
  for (auto& project : projections_) {
    inputs.push_back(project(x));
  }
  inputs.push_back(log_decay(x));
  inputs.push_back(beta);
  auto out = cache.recur(inputs, [&](auto& in, auto& states) {
    std::vector<mx::array> qkv;
    for (size_t i = 0; i < convs_.size(); ++i) {
      qkv.push_back(convs_[i](in[i], states[i]));
    }
    if (args_.fused) {
      qkv = mx::split(qkv[0], 3, -1);
    }
    mx::Shape heads{in[0].shape(0), in[0].shape(1), args_.heads, args_.head_dim};
    LinearRecurrence recurrence{
        .q = unit_length(mx::reshape(qkv[0], heads), 1 / std::sqrt(float(args_.head_dim))),
        .k = unit_length(mx::reshape(qkv[1], heads), 1),
        .v = mx::reshape(qkv[2], heads),
        .log_decay = in[convs_.size()],
        .beta = in[convs_.size() + 1],
        .delta = true};
    return linear_recurrence(recurrence, states.back());
  });
  auto gated = o_norm(out) * mx::sigmoid(by_head(g_(x)));
  return o_proj(mx::flatten(gated, 1, 2));
}

CacheSpec KimiDeltaAttention::cache_spec(const KimiDeltaArgs& args, mx::Dtype dtype) {
  StateSpec state{{args.heads, args.head_dim, args.head_dim}, mx::float32};
  if (args.fused) {
    return {.states = {{{args.kernel - 1, 3 * args.width()}, dtype}, state}};
  }
  StateSpec conv{{args.kernel - 1, args.width()}, dtype};
  return {.states = {conv, conv, conv, state}};
}

} // namespace parallm
