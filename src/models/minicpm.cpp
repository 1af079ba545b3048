// MiniCPM (arXiv 2404.06395): Llama's block with factors on the embedding, the
// residuals and the logits; MiniCPM 3 with latent attention.
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <cmath>

namespace parallm {

namespace {

using MakeAttention = std::function<Decoder::Block(const std::string& name)>;

void fill(
    Decoder& model,
    const Config& config,
    Weights& weights,
    const CacheSpec& cache,
    const MakeAttention& make_attention) {
  int dims = config.count("hidden_size"), layers = config.count("num_hidden_layers");
  float eps = config.number("rms_norm_eps", 1e-5);
  auto act = activation(config.text("hidden_act", "silu"));
  float residual = config.number("scale_depth") / std::sqrt(float(layers));
  for (int i = 0; i < layers; ++i) {
    auto name = layer_name(i);
    auto attend = make_attention(name + ".self_attn");
    GatedMLP mlp(weights, name + ".mlp", dims, config.count("intermediate_size"), act);
    model.add(pre_norm_block(weights, name, dims, eps, attend, mlp, residual), cache);
  }
  model.embedded = [by = float(config.number("scale_emb"))](const mx::array& x, Caches&) { return scaled(x, by); };
  // As the authors' modeling_minicpm.py; mlx-lm leaves it out where config.json says that the output layer is tied.
  float by = config.number("dim_model_base") / dims;
  model.scored = [by](const mx::array& x) { return scaled(x, by); };
}

} // namespace

std::unique_ptr<Model> make_minicpm(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"rope_theta", 1e6}});
  if (!weights.has("lm_head.weight")) { // tied, also where config.json denies it
    config.json["tie_word_embeddings"] = true;
  }
  Sizes sizes(config);
  auto model = usual_decoder(config, weights, sizes.hidden_size, config.number("rms_norm_eps", 1e-5));
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  fill(*model, config, weights, sizes.cache(), [&](const std::string& name) {
    return SelfAttention(Projections(weights, name, sizes), scaled_attention(sizes.head_dim, rope));
  });
  return model;
}

std::unique_ptr<Model> make_minicpm3(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"rope_theta", 1e6}});
  config.json["v_head_dim"] = config.count("hidden_size") / config.count("num_attention_heads");
  LatentArgs attention(config);
  auto model = usual_decoder(config, weights, attention.hidden_size, config.number("rms_norm_eps", 1e-5));
  auto* rope = model->keep(make_rope(config, attention.qk_rope_head_dim));
  fill(*model, config, weights, attention.cache(), [&](const std::string& name) {
    record_kv_b(weights, name, attention);
    split_kv_b(weights, name, attention, false);
    return LatentAttention(weights, name, attention, rope);
  });
  return model;
}

} // namespace parallm
