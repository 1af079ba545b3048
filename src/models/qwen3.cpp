// Qwen3 (arXiv 2505.09388): Llama's block with norms over each head of q and k.
// Qwen3-VL's text part is the same model.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "models/text_part.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_qwen3(const Config& config, Weights& weights) {
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-6);
  auto act = activation(config.text("hidden_act", "silu"));
  bool bias = config.boolean("attention_bias", false);
  auto windows = late_windows(config, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 1e6}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", sizes.hidden_size, eps),
            NormedAttention(
                Projections(weights, name + ".self_attn", sizes, bias, bias),
                RMSNorm(weights, name + ".self_attn.q_norm", sizes.head_dim, eps),
                RMSNorm(weights, name + ".self_attn.k_norm", sizes.head_dim, eps),
                scaled_attention(sizes.head_dim, rope, windows[i])),
            RMSNorm(weights, name + ".post_attention_layernorm", sizes.hidden_size, eps),
            GatedMLP(weights, name + ".mlp", sizes.hidden_size, sizes.intermediate_size, act)),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", sizes.hidden_size, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, sizes.hidden_size);
  return model;
}

std::unique_ptr<Model> make_qwen3_vl(const Config& config, Weights& weights) {
  weights.rename("model.visual.", "visual.");
  return make_qwen3(text_part(config, weights, {"visual.", "vision_tower."}), weights);
}

} // namespace parallm
