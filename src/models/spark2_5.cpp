// Spark 2.5 (iFlytek): q, k and v one layer, a gate a head on attention's output,
// three sliding layers to one that sees all, each kind with a RoPE of its own.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_spark2_5(const Config& config, Weights& weights) {
  require_text(config, "gate_attn_act_mode", "sigmoid");
  if (!config.boolean("headwise_attn_output_gate", true)) {
    fail(Kind::invalid, "[{}] 'headwise_attn_output_gate' must be true; got false", config.where);
  }
  weights.rename("model.embed_tokens.", "model.embedding.");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  bool attention_bias = config.boolean("attention_bias", false), mlp_bias = config.boolean("mlp_bias", false);
  auto act = activation(config.text("hidden_act", "gelu"));
  auto windows = layer_windows(config, sizes.num_hidden_layers, 4);
  auto model = std::make_unique<Decoder>(weights, "model.embedding", sizes);
  auto* full = model->keep(make_rope(config, sizes.head_dim, {.layer_type = "full_attention"}));
  auto* sliding = model->keep(make_rope(config, sizes.head_dim, {.layer_type = "sliding_attention"}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i), part = name + ".self_attn";
    FusedProjections project(
        weights, part, sizes, attention_bias, attention_bias, {.o = "out_proj", .qkv = "q_k_v_proj"});
    Linear gate(weights, part + ".g_proj", sizes.num_attention_heads, dims, attention_bias);
    auto how = scaled_attention(sizes.head_dim, windows[i] > 0 ? sliding : full, windows[i]);
    auto attend = [=](const mx::array& x, Cache& cache) {
      auto [q, k, v] = project(x);
      auto y = cache.attend(q, k, v, how);
      auto open = mx::sigmoid(mx::astype(gate(x), mx::float32));
      return project.out(y * mx::expand_dims(mx::astype(open, y.dtype()), 2));
    };
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", dims, eps),
            attend,
            RMSNorm(weights, name + ".post_attention_layernorm", dims, eps),
            GatedMLP(weights, name + ".mlp", dims, sizes.intermediate_size, act, mlp_bias)),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = untied_head(with_defaults(config, {{"tie_word_embeddings", true}}), weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
