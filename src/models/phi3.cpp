// Phi-3 and Phi-4 (arXiv 2404.14219, 2412.08905): Llama's block, whose q, k and
// v, and gate and up, are one layer each; longrope for long contexts.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_phi3(const Config& config, Weights& weights) {
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-5);
  auto act = activation(config.text("hidden_act", "silu"));
  // transformers' modeling_phi3.py slides; mlx-lm does not.
  auto windows = same_windows(config, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", sizes.hidden_size, eps),
            SelfAttention(
                FusedProjections(weights, name + ".self_attn", sizes),
                scaled_attention(sizes.head_dim, rope, windows[i])),
            RMSNorm(weights, name + ".post_attention_layernorm", sizes.hidden_size, eps),
            FusedGatedMLP(weights, name + ".mlp", sizes.hidden_size, sizes.intermediate_size, act)),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", sizes.hidden_size, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, sizes.hidden_size);
  return model;
}

} // namespace parallm
