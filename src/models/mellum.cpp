// Mellum 2 (JetBrains): Qwen3-MoE's block; some layers slide, and each kind of
// layer has a RoPE of its own.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/moe.h"

namespace parallm {

std::unique_ptr<Model> make_mellum(const Config& given, Weights& weights) {
  auto config = with_names(given, {{"intermediate_size", "moe_intermediate_size"}}); // no layer is dense
  require_text(config, "hidden_act", "silu");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  attention.norms = HeadNorms::each_head;
  attention.norm_eps = config.number("rms_norm_eps", 1e-6);
  int dims = sizes.hidden_size;
  int experts = config.count("num_experts"), hidden = config.count("moe_intermediate_size");
  auto windows = layer_windows(config, sizes.num_hidden_layers);
  auto choose = [choices = config.count("num_experts_per_tok"), normalize = config.boolean("norm_topk_prob", false)](
                    const mx::array& logits) { return choose_by_softmax(logits, choices, normalize); };

  auto model = usual_decoder(config, weights, dims, attention.norm_eps);
  auto* full = model->keep(make_rope(config, sizes.head_dim, {.layer_type = "full_attention"}));
  auto* sliding = has_rope_of(config, "sliding_attention")
      ? model->keep(make_rope(config, sizes.head_dim, {.layer_type = "sliding_attention"}))
      : full;
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto mlp = name + ".mlp";
    auto how = scaled_attention(sizes.head_dim, windows[i] > 0 ? sliding : full, windows[i]);
    GroupedAttention attend(weights, name + ".self_attn", attention, how);
    stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", experts);
    SparseMoe feed_forward(weights, mlp + ".gate", mlp + ".switch_mlp", experts, dims, hidden, choose);
    model->add(pre_norm_block(weights, name, dims, attention.norm_eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
