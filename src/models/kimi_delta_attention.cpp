#include "models/kimi_delta_attention.h"

#include "models/gated_delta_net.h"
#include "nn/activation.h"

#include <cmath>

namespace parallm {

KimiDeltaAttention::Gate::Gate(Weights& weights, const std::string& name, const KimiDeltaArgs& args)
    : to_narrow(
          args.narrow ? std::optional(Linear(weights, name + "_a_proj", args.head_dim, args.hidden)) : std::nullopt),
      to_wide(
          weights,
          name + (args.narrow ? "_b_proj" : "_proj"),
          args.width(),
          args.narrow ? args.head_dim : args.hidden) {}

mx::array KimiDeltaAttention::Gate::operator()(const mx::array& x) const {
  return to_wide(to_narrow ? (*to_narrow)(x) : x);
}

KimiDeltaAttention::KimiDeltaAttention(const KimiDeltaArgs& args, Weights& weights, const std::string& name)
    : args_(args),
      q_proj(weights, name + ".q_proj", args.width(), args.hidden),
      k_proj(weights, name + ".k_proj", args.width(), args.hidden),
      v_proj(weights, name + ".v_proj", args.width(), args.hidden),
      q_conv(weights, name + ".q" + args.conv, args.width(), args.kernel, false, true),
      k_conv(weights, name + ".k" + args.conv, args.width(), args.kernel, false, true),
      v_conv(weights, name + ".v" + args.conv, args.width(), args.kernel, false, true),
      f_(weights, name + ".f", args),
      g_(weights, name + ".g", args),
      b_proj(weights, name + ".b_proj", args.heads, args.hidden),
      a_([&] {
        auto shape = args.narrow ? mx::Shape{1, 1, args.heads, 1} : mx::Shape{args.heads};
        return mx::exp(mx::flatten(weights.take(name + ".A_log", shape, mx::float32)));
      }()),
      dt_bias(weights.take(name + ".dt_bias", {args.width()}, mx::float32)),
      o_norm(weights, name + ".o_norm", args.head_dim, args.eps),
      o_proj(weights, name + ".o_proj", args.hidden, args.width()) {}

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
  auto out = cache.recur({q_proj(x), k_proj(x), v_proj(x), log_decay(x), beta}, [&](auto& in, auto& states) {
    mx::Shape heads{in[0].shape(0), in[0].shape(1), args_.heads, args_.head_dim};
    LinearRecurrence recurrence{
        .q = unit_length(mx::reshape(q_conv(in[0], states[0]), heads), 1 / std::sqrt(float(args_.head_dim))),
        .k = unit_length(mx::reshape(k_conv(in[1], states[1]), heads), 1),
        .v = mx::reshape(v_conv(in[2], states[2]), heads),
        .log_decay = in[3],
        .beta = in[4],
        .delta = true};
    return linear_recurrence(recurrence, states[3]);
  });
  auto gated = o_norm(out) * mx::sigmoid(by_head(g_(x)));
  return o_proj(mx::flatten(gated, 1, 2));
}

CacheSpec KimiDeltaAttention::cache_spec(const KimiDeltaArgs& args, mx::Dtype dtype) {
  StateSpec conv{{args.kernel - 1, args.width()}, dtype};
  return {.states = {conv, conv, conv, {{args.heads, args.head_dim, args.head_dim}, mx::float32}}};
}

} // namespace parallm
