// EXAONE 4 (arXiv 2507.11407): norms after both halves of a block, norms of q and
// k in each head; the large one slides in three layers of four and has no
// rotation in the fourth.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

/** `layer_types`, else `sliding_window_pattern`: a number, or as in "LLLG" a
 * letter a layer, repeated (L: slides). */
std::vector<int> exaone4_windows(const Config& config, int layers) {
  std::vector<int> windows(layers, 0);
  if (!config.has("sliding_window")) {
    return windows;
  }
  auto* pattern = config.json.if_contains("sliding_window_pattern");
  if (config.has("layer_types") || !pattern || !pattern->is_string()) {
    return layer_windows(config, layers, config.count("sliding_window_pattern", 4));
  }
  auto letters = config.text("sliding_window_pattern");
  if (letters.empty() || letters.find_first_not_of("LG") != std::string::npos) {
    fail(Kind::invalid, "[{}] 'sliding_window_pattern' may hold L and G; got '{}'", config.where, letters);
  }
  for (int i = 0; i < layers; ++i) {
    windows[i] = letters[i % letters.size()] == 'L' ? config.count("sliding_window") : 0;
  }
  return windows;
}

} // namespace

std::unique_ptr<Model> make_exaone4(const Config& config, Weights& weights) {
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-5);
  int dims = sizes.hidden_size;
  auto act = activation(config.text("hidden_act", "silu"));
  auto windows = exaone4_windows(config, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    bool rotates = windows[i] > 0 || !config.has("sliding_window");
    NormedAttention attend(
        Projections(weights, name + ".self_attn", sizes),
        RMSNorm(weights, name + ".self_attn.q_norm", sizes.head_dim, eps),
        RMSNorm(weights, name + ".self_attn.k_norm", sizes.head_dim, eps),
        scaled_attention(sizes.head_dim, rotates ? rope : nullptr, windows[i]));
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act);
    RMSNorm after_attention(weights, name + ".post_attention_layernorm", dims, eps);
    RMSNorm after_mlp(weights, name + ".post_feedforward_layernorm", dims, eps);
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = x + after_attention(attend(x, cache));
          return h + after_mlp(mlp(h));
        },
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
