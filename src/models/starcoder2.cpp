// StarCoder 2 (arXiv 2402.19173): layer norms, biases everywhere, a plain
// feed-forward part and a sliding window.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_starcoder2(const Config& config, Weights& weights) {
  Sizes sizes(config);
  float eps = config.number("norm_epsilon", 1e-5);
  bool bias = config.boolean("use_bias", true);
  // transformers' modeling_starcoder2.py takes the tanh form, as its config.json
  // says; mlx-lm the one by erf.
  auto act = activation(config.text("hidden_act", "gelu_pytorch_tanh"));
  // As transformers; mlx-lm does not slide.
  auto windows = same_windows(config, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 100000}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(
        PreNormBlock(
            LayerNorm(weights, name + ".input_layernorm", sizes.hidden_size, eps, true),
            SelfAttention(
                Projections(weights, name + ".self_attn", sizes, bias, bias),
                scaled_attention(sizes.head_dim, rope, windows[i])),
            LayerNorm(weights, name + ".post_attention_layernorm", sizes.hidden_size, eps, true),
            MLP(weights,
                name + ".mlp",
                sizes.hidden_size,
                sizes.intermediate_size,
                act,
                bias,
                {.up = "c_fc", .down = "c_proj"})),
        sizes.cache());
  }
  model->norm = LayerNorm(weights, "model.norm", sizes.hidden_size, eps, true);
  // Tied unless said: HF's Starcoder2Config and mlx-lm agree.
  model->head =
      untied_head(with_defaults(config, {{"tie_word_embeddings", true}}), weights, sizes.vocab_size, sizes.hidden_size);
  return model;
}

} // namespace parallm
