// DeepSeekMoE 16B (arXiv 2401.06066): Llama's attention, small routed experts
// beside shared ones.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

namespace parallm {

std::unique_ptr<Model> make_deepseek(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"norm_topk_prob", false}});
  require_text(config, "hidden_act", "silu");
  require_text(config, "scoring_func", "softmax");
  GroupedAttentionArgs attention{Sizes(config)};
  attention.bias = attention.output_bias = config.boolean("attention_bias", false);
  auto& sizes = attention.sizes;
  float eps = config.number("rms_norm_eps", 1e-6);

  auto model = usual_decoder(config, weights, sizes.hidden_size, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto mlp = name + ".mlp";
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope));
    auto feed_forward = [&]() -> Decoder::Map {
      if (!is_deepseek_moe_layer(config, i)) {
        return GatedMLP(weights, mlp, sizes.hidden_size, sizes.intermediate_size);
      }
      DeepseekMoeArgs args(config);
      int choices = args.selection.choices;
      bool normalize = args.selection.normalize;
      return DeepseekMoe(
          weights, mlp, args, [=](const mx::array& logits) { return choose_by_softmax(logits, choices, normalize); });
    }();
    model->add(pre_norm_block(weights, name, sizes.hidden_size, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
