// GLM-4.5 and 4.6 (arXiv 2508.06471), Solar Open: grouped heads, part of each
// rotated, with DeepSeek-V3's experts.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

namespace parallm {

std::unique_ptr<Model> make_glm4_moe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  float eps = config.number("rms_norm_eps", 1e-5);
  attention.bias = config.boolean("attention_bias", false);
  attention.norms = config.boolean("use_qk_norm", false) ? HeadNorms::each_head : HeadNorms::none;
  attention.norm_eps = eps;
  ignore_layers_from(weights, sizes.num_hidden_layers, config.integer("num_nextn_predict_layers", 1));

  auto model = usual_decoder(config, weights, sizes.hidden_size, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope));
    auto feed_forward = [&]() -> Decoder::Map {
      if (i < config.integer("first_k_dense_replace", 1)) {
        return GatedMLP(weights, name + ".mlp", sizes.hidden_size, sizes.intermediate_size);
      }
      return deepseek_v3_moe(config, weights, name + ".mlp");
    }();
    model->add(pre_norm_block(weights, name, sizes.hidden_size, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
