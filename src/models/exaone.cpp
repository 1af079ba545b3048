// EXAONE 3 and 3.5 (arXiv 2408.03541, 2412.04862): Llama's block under GPT-2's
// names.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_exaone(const Config& given, Weights& weights) {
  auto config = with_names(
      given,
      {{"num_hidden_layers", "num_layers"},
       {"rms_norm_eps", "layer_norm_epsilon"},
       {"hidden_act", "activation_function"}});
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-5);
  bool attention_bias = config.boolean("attention_bias", false);
  bool mlp_bias = config.boolean("mlp_bias", false);
  auto act = activation(config.text("hidden_act", "silu"));
  auto model = std::make_unique<Decoder>(weights, "transformer.wte", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("transformer.h.{}", i);
    weights.ignore(name + ".attn.attention.rotary.");
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".ln_1", sizes.hidden_size, eps),
            SelfAttention(
                Projections(
                    weights, name + ".attn.attention", sizes, attention_bias, attention_bias, {.o = "out_proj"}),
                scaled_attention(sizes.head_dim, rope)),
            RMSNorm(weights, name + ".ln_2", sizes.hidden_size, eps),
            GatedMLP(
                weights,
                name + ".mlp",
                sizes.hidden_size,
                sizes.intermediate_size,
                act,
                mlp_bias,
                {.gate = "c_fc_0", .up = "c_fc_1", .down = "c_proj"})),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "transformer.ln_f", sizes.hidden_size, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, sizes.hidden_size);
  return model;
}

} // namespace parallm
