// Gemma 2 (arXiv 2408.00118): norms around both halves of a block, capped scores
// and logits, every other layer sliding.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <cmath>

namespace parallm {

namespace {

struct Gemma2Args : Sizes {
  explicit Gemma2Args(const Config& config)
      : Sizes(config),
        rms_norm_eps(config.number("rms_norm_eps", 1e-6)),
        query_pre_attn_scalar(config.number("query_pre_attn_scalar", 144)),
        attn_logit_softcapping(config.number("attn_logit_softcapping", 50)),
        final_logit_softcapping(config.number("final_logit_softcapping", 30)),
        act(activation(config.text("hidden_activation", "gelu_pytorch_tanh"))) {}

  float rms_norm_eps;
  float query_pre_attn_scalar;
  float attn_logit_softcapping;
  float final_logit_softcapping;
  Activation act;
};

class Block {
 public:
  Block(const Gemma2Args& args, Weights& weights, const std::string& name, const Attention& how)
      : self_attn(Projections(weights, name + ".self_attn", args), how),
        mlp(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps, 1),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps, 1),
        pre_feedforward_layernorm(weights, name + ".pre_feedforward_layernorm", args.hidden_size, args.rms_norm_eps, 1),
        post_feedforward_layernorm(
            weights,
            name + ".post_feedforward_layernorm",
            args.hidden_size,
            args.rms_norm_eps,
            1) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = x + post_attention_layernorm(self_attn(input_layernorm(x), cache));
    return h + post_feedforward_layernorm(mlp(pre_feedforward_layernorm(h)));
  }

 private:
  SelfAttention<> self_attn;
  GatedMLP mlp;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
  RMSNorm pre_feedforward_layernorm;
  RMSNorm post_feedforward_layernorm;
};

/** Transformers slides in every other layer from the first; mlx-lm, whose
 * answers are the same up to the window's length, in none. */
std::vector<int> gemma2_windows(const Config& config, int layers) {
  return config.has("sliding_window") ? layer_windows(config, layers, 2) : std::vector<int>(layers, 0);
}

} // namespace

std::unique_ptr<Model> make_gemma2(const Config& config, Weights& weights) {
  Gemma2Args args(config);
  auto windows = gemma2_windows(config, args.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* rope = model->keep(make_rope(config, args.head_dim));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto how = scaled_attention(args.query_pre_attn_scalar, rope, windows[i]);
    how.softcap = args.attn_logit_softcapping;
    model->add(Block(args, weights, fmt::format("model.layers.{}", i), how), args.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", args.hidden_size, args.rms_norm_eps, 1);
  weights.ignore("lm_head.");
  float scale = std::sqrt(float(args.hidden_size));
  model->embedded = [scale](const mx::array& x, Caches&) { return scaled(x, scale); };
  model->scored = [cap = args.final_logit_softcapping](const mx::array& x) { return softcapped(x, cap); };
  return model;
}

} // namespace parallm
