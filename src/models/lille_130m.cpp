// Lille 130M (Nikity): Llama's block, whose q, k and v are one layer, under names of
// its own.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <cmath>

namespace parallm {

std::unique_ptr<Model> make_lille_130m(const Config& given, Weights& weights) {
  auto config = with_names(
      given,
      {{"hidden_size", "n_embd"},
       {"num_hidden_layers", "n_layer"},
       {"num_attention_heads", "n_head"},
       {"num_key_value_heads", "n_kv_heads"}});
  // 8/3 of the width, to the nearest multiple of 256.
  config.json["intermediate_size"] = 256 * int(std::nearbyint(8 * config.count("hidden_size") / 3 / 256.0));
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("layer_norm_eps", 1e-5);
  auto model = std::make_unique<Decoder>(weights, "transformer.tok_embeddings", sizes);
  auto* rope = model->keep(plain_rope(sizes.head_dim, config.number("rope_theta", 10000), true));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("transformer.layers.{}", i), attention = name + ".attention";
    model->add(
        PreNormBlock(
            RMSNorm(weights, attention + ".norm", dims, eps),
            SelfAttention(
                FusedProjections(weights, attention, sizes, false, false, {.o = "out_proj"}),
                scaled_attention(sizes.head_dim, rope)),
            RMSNorm(weights, name + ".feed_forward.norm", dims, eps),
            GatedMLP(weights, name + ".feed_forward", dims, sizes.intermediate_size)),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "transformer.norm", dims, eps);
  return model; // the embedding is the output layer
}

} // namespace parallm
