// Gemma (arXiv 2403.08295): Llama's block with GeGLU, norms whose weights are
// stored less one, and an embedding scaled by sqrt(hidden_size).
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <cmath>

namespace parallm {

std::unique_ptr<Model> make_gemma(const Config& config, Weights& weights) {
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-6);
  // transformers' modeling_gemma.py takes the tanh form whatever `hidden_act`
  // says (Google's checkpoints say "gelu" and mean it); mlx-lm the one by erf,
  // which differs from it by less than 5e-4.
  auto act = activation(config.text("hidden_activation", "gelu_pytorch_tanh"));
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", sizes.hidden_size, eps, 1),
            SelfAttention(Projections(weights, name + ".self_attn", sizes), scaled_attention(sizes.head_dim, rope)),
            RMSNorm(weights, name + ".post_attention_layernorm", sizes.hidden_size, eps, 1),
            GatedMLP(weights, name + ".mlp", sizes.hidden_size, sizes.intermediate_size, act)),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", sizes.hidden_size, eps, 1);
  weights.ignore("lm_head.");
  float scale = std::sqrt(float(sizes.hidden_size));
  model->embedded = [scale](const mx::array& x, Caches&) { return scaled(x, scale); };
  return model;
}

} // namespace parallm
