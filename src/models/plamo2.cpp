// PLaMo 2 (arXiv 2509.04897): every second layer is Mamba-2's recurrence, whose
// inputs are normed as in Jamba, the others attention; norms around both halves of
// a block, stored less a constant.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/recurrent.h"

#include <algorithm>
#include <cmath>

namespace parallm {

namespace {

struct Plamo2Args : Sizes {
  explicit Plamo2Args(const Config& config)
      : Sizes(config),
        eps(config.number("rms_norm_eps", 1e-6)),
        state_size(config.count("mamba_d_state", 64)),
        kernel(config.count("mamba_d_conv", 4)),
        mamba_heads(config.count("mamba_num_heads", 64)),
        rank(std::max(64, hidden_size / 16)) {}

  float eps;
  int state_size;
  int kernel;
  int mamba_heads; // as wide as attention's
  int rank; // of dt's projection

  int inner() const {
    return mamba_heads * head_dim;
  }
};

class Mamba {
 public:
  Mamba(const Plamo2Args& args, Weights& weights, const std::string& name)
      : args_(args),
        in_proj(weights, name + ".in_proj", 2 * args.inner(), args.hidden_size),
        conv1d(weights, name + ".conv1d", args.inner(), args.kernel, false, true),
        bcdt_proj(weights, name + ".bcdt_proj", args.rank + 2 * args.state_size, args.inner()),
        dt_proj(weights, name + ".dt_proj", args.mamba_heads, args.rank),
        dt_bias(weights.take(name + ".dt_bias", {args.mamba_heads}, mx::float32)),
        a_(mx::negative(mx::exp(weights.take(name + ".A_log", {args.mamba_heads}, mx::float32)))),
        D(weights.take(name + ".D", {args.mamba_heads}, mx::float32)),
        dt_norm_weight(weights.take(name + ".dt_norm_weight", {args.rank}, weights.dtype())),
        B_norm_weight(weights.take(name + ".B_norm_weight", {args.state_size}, weights.dtype())),
        C_norm_weight(weights.take(name + ".C_norm_weight", {args.state_size}, weights.dtype())),
        out_proj(weights, name + ".out_proj", args.hidden_size, args.inner()) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    int count = x.shape(0);
    auto zx = mx::split(mx::reshape(in_proj(x), {count, args_.mamba_heads, 2 * args_.head_dim}), 2, 2);
    auto y = cache.recur(
        {mx::flatten(zx[1], 1, 2)}, [&](auto& in, auto& states) { return scan(conv1d(in[0], states[0]), states[1]); });
    return out_proj(swiglu(mx::flatten(zx[0], 1, 2), y));
  }

  static CacheSpec cache_spec(const Plamo2Args& args, mx::Dtype dtype) {
    return {
        .states = {
            {{args.kernel - 1, args.inner()}, dtype},
            {{args.mamba_heads, args.head_dim, args.state_size}, mx::float32}}};
  }

 private:
  /** x [B,L,inner]. */
  mx::array scan(const mx::array& x, mx::array& state) const {
    int rows = x.shape(0), length = x.shape(1), n = args_.state_size;
    auto parts = mx::split(bcdt_proj(mx::flatten(x, 0, 1)), mx::Shape{n, 2 * n}, 1);
    auto normed = [&](const mx::array& y, const mx::array& weight) { return rms_norm(y, args_.eps) * weight; };
    auto dt = softplus(mx::astype(dt_proj(normed(parts[2], dt_norm_weight)), mx::float32) + dt_bias);
    dt = mx::reshape(dt, {rows, length, args_.mamba_heads});
    LinearRecurrence recurrence{
        .q = mx::reshape(normed(parts[1], C_norm_weight), {rows, length, 1, n}),
        .k = mx::reshape(normed(parts[0], B_norm_weight), {rows, length, 1, n}),
        .v = mx::reshape(x, {rows, length, args_.mamba_heads, args_.head_dim}),
        .log_decay = dt * a_,
        .beta = dt,
        .skip = D};
    return mx::flatten(linear_recurrence(recurrence, state), 2, 3);
  }

  Plamo2Args args_;
  Linear in_proj; // a head's gate, then its input
  CausalConv conv1d;
  Linear bcdt_proj;
  Linear dt_proj;
  mx::array dt_bias; // [mamba_heads]
  mx::array a_; // [mamba_heads] -exp(A_log)
  mx::array D; // [mamba_heads]
  mx::array dt_norm_weight;
  mx::array B_norm_weight;
  mx::array C_norm_weight;
  Linear out_proj;
};

/** Norms of q and k whose weights are each head's own. */
class HeadsAttention {
 public:
  HeadsAttention(const Plamo2Args& args, Weights& weights, const std::string& name, const Rope* rope)
      : project_(weights, name, args),
        how_(scaled_attention(args.head_dim, rope)),
        q_weight(weights.take(name + ".q_weight", {args.num_attention_heads, args.head_dim}, weights.dtype())),
        k_weight(weights.take(name + ".k_weight", {args.num_key_value_heads, args.head_dim}, weights.dtype())) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    constexpr float eps = 1e-6f;
    auto [q, k, v] = project_(x);
    return project_.out(cache.attend(rms_norm(q, eps) * q_weight, rms_norm(k, eps) * k_weight, v, how_));
  }

 private:
  FusedProjections project_;
  Attention how_;
  mx::array q_weight;
  mx::array k_weight;
};

bool is_mamba(const Config& config, int layer, int layers) {
  int step = config.count("mamba_step", 2);
  if (!config.boolean("mamba_enabled", true)) {
    return false;
  }
  return layers <= step / 2 ? layer != layers - 1 : layer % step != step / 2;
}

} // namespace

std::unique_ptr<Model> make_plamo2(const Config& given, Weights& weights) {
  auto config = with_names(given, {{"head_dim", "hidden_size_per_head"}});
  Plamo2Args args(config);
  int dims = args.hidden_size;
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* rope = model->keep(plain_rope(args.head_dim, 10000));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.layers.{}", i);
    bool mamba = is_mamba(config, i, args.num_hidden_layers);
    auto mix = mamba ? Decoder::Block(Mamba(args, weights, name + ".mixer"))
                     : HeadsAttention(args, weights, name + ".mixer", rope);
    FusedGatedMLP mlp(weights, name + ".mlp", dims, args.intermediate_size);
    RMSNorm before_mixer(weights, name + ".pre_mixer_norm", dims, args.eps, 1);
    RMSNorm after_mixer(weights, name + ".post_mixer_norm", dims, args.eps, 1.0f / 5);
    RMSNorm before_mlp(weights, name + ".pre_mlp_norm", dims, args.eps, 1);
    RMSNorm after_mlp(weights, name + ".post_mlp_norm", dims, args.eps, 1 / std::pow(5.0f, 1.5f));
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = x + after_mixer(mix(before_mixer(x), cache));
          return h + after_mlp(mlp(before_mlp(h)));
        },
        mamba ? Mamba::cache_spec(args, weights.dtype()) : args.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, args.eps, 1);
  model->head = untied_head(with_defaults(config, {{"tie_word_embeddings", true}}), weights, args.vocab_size, dims);
  return model;
}

} // namespace parallm
