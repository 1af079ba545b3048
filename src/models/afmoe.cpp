// Trinity (Arcee): attention with an output gate (arXiv 2505.06708), windows with
// RoPE in most layers and neither in the rest; norms around both halves of a
// block; DeepSeek-V3's experts.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

#include <cmath>

namespace parallm {

std::unique_ptr<Model> make_afmoe(const Config& given, Weights& weights) {
  auto config = with_names(
      given,
      {{"n_routed_experts", "num_experts"},
       {"n_shared_experts", "num_shared_experts"},
       {"norm_topk_prob", "route_norm"},
       {"routed_scaling_factor", "route_scale"},
       {"scoring_func", "score_func"}});
  require_text(config, "hidden_act", "silu");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  attention.norms = HeadNorms::each_head;
  attention.norm_eps = config.number("rms_norm_eps", 1e-5);
  int dims = sizes.hidden_size, width = sizes.num_attention_heads * sizes.head_dim;
  float eps = attention.norm_eps;
  auto windows = layer_windows(config, sizes.num_hidden_layers, config.count("global_attn_every_n_layers", 4));
  const DeepseekMoeNames names{
      .gate = "router.gate", .bias = "expert_bias", .experts = "experts", .separate = "experts"};

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    GroupedAttention attend(
        weights,
        name + ".self_attn",
        attention,
        scaled_attention(sizes.head_dim, windows[i] > 0 ? rope : nullptr, windows[i]));
    Linear gate(weights, name + ".self_attn.gate_proj", width, dims);
    auto feed_forward = [&]() -> Decoder::Map {
      if (i < config.integer("num_dense_layers", 2)) {
        return GatedMLP(weights, name + ".mlp", dims, sizes.intermediate_size);
      }
      return deepseek_v3_moe(config, weights, name + ".mlp", names);
    }();
    RMSNorm before_attention(weights, name + ".input_layernorm", dims, eps);
    RMSNorm after_attention(weights, name + ".post_attention_layernorm", dims, eps);
    RMSNorm before_mlp(weights, name + ".pre_mlp_layernorm", dims, eps);
    RMSNorm after_mlp(weights, name + ".post_mlp_layernorm", dims, eps);
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto normed = before_attention(x);
          auto attended = attend.attend(normed, cache);
          auto gated = attended * mx::reshape(mx::sigmoid(gate(normed)), attended.shape());
          auto h = x + after_attention(attend.out(gated));
          return h + after_mlp(feed_forward(before_mlp(h)));
        },
        sizes.cache());
  }
  if (config.boolean("mup_enabled", true)) {
    model->embedded = [by = std::sqrt(float(dims))](const mx::array& x, Caches&) { return scaled(x, by); };
  }
  return model;
}

} // namespace parallm
