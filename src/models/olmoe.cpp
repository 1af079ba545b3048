// OLMoE (arXiv 2409.02060): q and k normed over all heads, every layer sparse.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/moe.h"

namespace parallm {

std::unique_ptr<Model> make_olmoe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  float eps = config.number("rms_norm_eps", 1e-5);
  attention.norms = HeadNorms::all_heads;
  attention.norm_eps = eps;
  attention.bias = attention.output_bias = config.boolean("attention_bias", false);
  int dims = sizes.hidden_size;
  int experts = config.count("num_experts");
  int choices = config.count("num_experts_per_tok");
  bool normalize = config.boolean("norm_topk_prob", false);
  auto choose = [=](const mx::array& logits) { return choose_by_softmax(logits, choices, normalize); };

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto mlp = name + ".mlp";
    stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", experts);
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope));
    SparseMoe block(
        weights, mlp + ".gate", mlp + ".switch_mlp", experts, dims, config.count("intermediate_size"), choose);
    model->add(pre_norm_block(weights, name, dims, eps, attend, block), sizes.cache());
  }
  return model;
}

} // namespace parallm
