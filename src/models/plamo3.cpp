// PLaMo 3 (Preferred Networks, 2025): attention over a window in all layers but
// every eighth, norms around both halves of a block, stored less a constant.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <cmath>

namespace parallm {

std::unique_ptr<Model> make_plamo3(const Config& given, Weights& weights) {
  auto config = with_names(given, {{"sliding_window", "window_size"}});
  config = with_defaults(
      config, {{"num_key_value_heads", 4}, {"head_dim", 128}, {"sliding_window", 2048}, {"tie_word_embeddings", true}});
  require_text(config, "linear_type", "normal");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  // A prompt's tokens see one token more in mlx-lm, a decoded one doesn't.
  auto windows = layer_windows(config, sizes.num_hidden_layers, config.count("sliding_window_pattern", 8));
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* full = model->keep(plain_rope(sizes.head_dim, config.number("rope_theta", 1e6)));
  auto* sliding = model->keep(plain_rope(sizes.head_dim, config.number("rope_local_theta", 10000)));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.layers.{}", i);
    NormedAttention mix(
        FusedProjections(weights, name + ".mixer", sizes),
        RMSNorm(weights, name + ".mixer.q_norm", sizes.head_dim, eps, 1),
        RMSNorm(weights, name + ".mixer.k_norm", sizes.head_dim, eps, 1),
        scaled_attention(sizes.head_dim, windows[i] > 0 ? sliding : full, windows[i]));
    FusedGatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size);
    RMSNorm before_mixer(weights, name + ".pre_mixer_norm", dims, eps, 1);
    RMSNorm after_mixer(weights, name + ".post_mixer_norm", dims, eps, 1.0f / 5);
    RMSNorm before_mlp(weights, name + ".pre_mlp_norm", dims, eps, 1);
    RMSNorm after_mlp(weights, name + ".post_mlp_norm", dims, eps, 1 / std::pow(5.0f, 1.5f));
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = x + after_mixer(mix(before_mixer(x), cache));
          return h + after_mlp(mlp(before_mlp(h)));
        },
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps, 1);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
