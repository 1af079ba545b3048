// Phi-1, Phi-1.5 and Phi-2 (arXiv 2306.11644, 2309.05463): attention and a plain
// feed-forward part side by side after one layer norm, part of the dims rotated.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_phi(const Config& config, Weights& weights) {
  require_off(config, "qk_layernorm");
  require_off(config, "tie_word_embeddings");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("layer_norm_eps", 1e-5);
  auto act = activation(config.text("hidden_act", "gelu_new"));
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.partial = 0.4}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    LayerNorm norm(weights, name + ".input_layernorm", dims, eps, true);
    SelfAttention attend(
        Projections(weights, name + ".self_attn", sizes, true, true, {.o = "dense"}),
        scaled_attention(sizes.head_dim, rope));
    MLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act, true, {.up = "fc1", .down = "fc2"});
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = norm(x);
          return x + attend(h, cache) + mlp(h);
        },
        sizes.cache());
  }
  model->norm = LayerNorm(weights, "model.final_layernorm", dims, eps, true);
  model->head = Linear(weights, "lm_head", sizes.vocab_size, dims, true);
  return model;
}

} // namespace parallm
