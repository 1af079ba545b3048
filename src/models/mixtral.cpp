// Mixtral (arXiv 2401.04088): Mistral with eight feed-forward experts, two of
// which each token goes to.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/moe.h"

namespace parallm {

std::unique_ptr<Model> make_mixtral(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  int window = config.count("sliding_window", 0);
  int dims = sizes.hidden_size;
  int experts = config.count("num_local_experts", 8);
  int choices = config.count("num_experts_per_tok", 2);
  int hidden = config.count("intermediate_size", 14336);
  float eps = config.number("rms_norm_eps", 1e-5);
  auto choose = [choices](const mx::array& logits) { return choose_then_softmax(logits, choices); };

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 1e6}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto moe = name + ".block_sparse_moe";
    stack_experts(weights, moe + ".experts", moe + ".switch_mlp", experts, numbered_projections);
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope, window));
    SparseMoe block(weights, moe + ".gate", moe + ".switch_mlp", experts, dims, hidden, choose);
    model->add(pre_norm_block(weights, name, dims, eps, attend, block), sizes.cache());
  }
  return model;
}

} // namespace parallm
