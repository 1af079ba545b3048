// Muse Glimmer (Meta): norms without weights on q and k, an output gate on
// attention (arXiv 2505.06708), norms around both halves of a block, and every
// fourth layer without window or RoPE.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "models/text_part.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_muse_glimmer(const Config& outer, Weights& weights) {
  auto config = text_part(outer, weights, {"vision_tower.", "vision_adapter.", "vision_projection."});
  config = with_defaults(config, outer.json); // fields may stand in either
  require_text(config, "hidden_activation", "silu");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5), post_eps = config.number("post_norm_eps", 1e-8);
  float q_scale = config.number("qk_scale_factor", 3.87);
  auto windows = layer_windows(with_defaults(config, {{"sliding_window", 2048}}), sizes.num_hidden_layers, 4);
  auto rotates = rotating_layers(config, windows);

  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 500000}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    Projections project(weights, name + ".self_attn", sizes);
    Linear gate(weights, name + ".self_attn.gate_proj", sizes.num_attention_heads * sizes.head_dim, dims);
    auto how = scaled_attention(sizes.head_dim, rotates[i] ? rope : nullptr, windows[i]);
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size);
    RMSNorm before_attention(weights, name + ".input_layernorm", dims, eps, 1);
    RMSNorm after_attention(weights, name + ".post_attention_layernorm", dims, post_eps, 1);
    RMSNorm before_mlp(weights, name + ".pre_feedforward_layernorm", dims, eps, 1);
    RMSNorm after_mlp(weights, name + ".post_feedforward_layernorm", dims, post_eps, 1);
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto normed = before_attention(x);
          auto [q, k, v] = project(normed);
          auto y = cache.attend(scaled(rms_norm(q, eps), q_scale), rms_norm(k, eps), v, how);
          y = y * mx::reshape(mx::sigmoid(gate(normed)), y.shape());
          auto h = x + after_attention(project.out(y));
          return h + after_mlp(mlp(before_mlp(h)));
        },
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  model->embedded = [eps](const mx::array& x, Caches&) { return rms_norm(x, eps); };
  float by = config.number("output_multiplier", 0.19611613513818404);
  float cap = config.number("final_logit_softcapping", 20);
  model->scored = [=](const mx::array& x) { return softcapped(scaled(x, by), cap); };
  return model;
}

} // namespace parallm
