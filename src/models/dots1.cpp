// dots.llm1 (arXiv 2506.05767): norms of q and k in each head, DeepSeek-V3's
// experts.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

namespace parallm {

std::unique_ptr<Model> make_dots1(const Config& given, Weights& weights) {
  auto config = given;
  config.json.erase("scoring_func"); // "noaux_tc" in published files, which names the method
  require_text(config, "hidden_act", "silu");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  float eps = config.number("rms_norm_eps", 1e-5);
  attention.bias = attention.output_bias = config.boolean("attention_bias", false);
  attention.norms = HeadNorms::each_head;
  attention.norm_eps = eps;
  auto windows = config.has("layer_types") ? layer_windows(config, sizes.num_hidden_layers)
                                           : std::vector<int>(sizes.num_hidden_layers, 0);

  auto model = usual_decoder(config, weights, sizes.hidden_size, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    GroupedAttention attend(
        weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope, windows[i]));
    auto feed_forward = [&]() -> Decoder::Map {
      if (i < config.integer("first_k_dense_replace", 0)) {
        return GatedMLP(weights, name + ".mlp", sizes.hidden_size, sizes.intermediate_size);
      }
      return deepseek_v3_moe(config, weights, name + ".mlp", {.experts = "experts"});
    }();
    model->add(pre_norm_block(weights, name, sizes.hidden_size, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
