// Apertus (arXiv 2509.14233): Llama's attention with norms of q and k in each
// head, and a feed-forward part without a gate whose activation, xIELU (arXiv
// 2411.13010), is learned.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/activation.h"

namespace parallm {

namespace {

/** Above 0 a square, below an exponential, each as steep as its weight says. */
class XIELU {
 public:
  XIELU(Weights& weights, const std::string& name)
      : alpha_p_(softplus(number(weights, name + ".alpha_p", {}))),
        alpha_n_(softplus(number(weights, name + ".alpha_n", {}))),
        beta_(number(weights, name + ".beta", 0.5f)),
        eps_(number(weights, name + ".eps", -1e-6f)) {}

  mx::array operator()(const mx::array& x) const {
    auto as_x = [&](const mx::array& value) { return mx::astype(value, x.dtype()); };
    auto beta = as_x(beta_);
    auto above = as_x(alpha_p_) * mx::square(x) + beta * x;
    auto below = (mx::expm1(mx::minimum(x, as_x(eps_))) - x) * as_x(beta_ + alpha_n_) + beta * x;
    return mx::where(mx::greater(x, mx::array(0, x.dtype())), above, below);
  }

 private:
  /** Stored as [1] in Hugging Face's layout. */
  static mx::array number(Weights& weights, const std::string& name, std::optional<float> fallback) {
    auto stored = weights.pull(name);
    if (!stored && fallback) {
      return mx::array(*fallback);
    }
    if (stored) {
      weights.put(name, stored->size() == 1 ? mx::reshape(*stored, {}) : *stored);
    }
    return weights.take(name, {}, mx::float32);
  }

  mx::array alpha_p_;
  mx::array alpha_n_;
  mx::array beta_;
  mx::array eps_;
};

class XIELUMLP {
 public:
  XIELUMLP(Weights& weights, const std::string& name, int dims, int hidden, bool bias)
      : up_proj(weights, name + ".up_proj", hidden, dims, bias),
        down_proj(weights, name + ".down_proj", dims, hidden, bias),
        act_fn(weights, name + ".act_fn") {}

  mx::array operator()(const mx::array& x) const {
    return down_proj(act_fn(up_proj(x)));
  }

 private:
  Linear up_proj;
  Linear down_proj;
  XIELU act_fn;
};

} // namespace

std::unique_ptr<Model> make_apertus(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "xielu");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  bool attention_bias = config.boolean("attention_bias", false);
  bool mlp_bias = config.boolean("mlp_bias", false);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 12e6}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".attention_layernorm", dims, eps),
            NormedAttention(
                Projections(weights, name + ".self_attn", sizes, attention_bias, attention_bias),
                RMSNorm(weights, name + ".self_attn.q_norm", sizes.head_dim, eps),
                RMSNorm(weights, name + ".self_attn.k_norm", sizes.head_dim, eps),
                scaled_attention(sizes.head_dim, rope)),
            RMSNorm(weights, name + ".feedforward_layernorm", dims, eps),
            XIELUMLP(weights, name + ".mlp", dims, sizes.intermediate_size, mlp_bias)),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
