// Qwen 1 (arXiv 2309.16609): Llama's block under GPT-2's names, with biases on q,
// k and v.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_qwen(const Config& given, Weights& weights) {
  auto config = with_names(given, {{"rope_theta", "rotary_emb_base"}, {"head_dim", "kv_channels"}});
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("layer_norm_epsilon", 1e-6);
  bool bias = !config.boolean("no_bias", true);
  auto model = std::make_unique<Decoder>(weights, "transformer.wte", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("transformer.h.{}", i);
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".ln_1", dims, eps),
            SelfAttention(
                FusedProjections(weights, name + ".attn", sizes, true, bias, {.o = "c_proj", .qkv = "c_attn"}),
                scaled_attention(sizes.head_dim, rope)),
            RMSNorm(weights, name + ".ln_2", dims, eps),
            GatedMLP(
                weights,
                name + ".mlp",
                dims,
                sizes.intermediate_size / 2, // it counts gate and up
                silu,
                bias,
                {.gate = "w2", .up = "w1", .down = "c_proj"})),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "transformer.ln_f", dims, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
