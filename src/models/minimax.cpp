// MiniMax M2 (arXiv 2506.13585 tells of its predecessor): norms over all of q and
// k, part of each head rotated, experts chosen by biased sigmoids.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

namespace parallm {

std::unique_ptr<Model> make_minimax(const Config& given, Weights& weights) {
  auto config = given;
  require_text(config, "hidden_act", "silu");
  require_text(config, "scoring_func", "sigmoid");
  require_text(config, "qk_norm_type", "per_layer");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  attention.norms = config.boolean("use_qk_norm", true) ? HeadNorms::all_heads : HeadNorms::none;
  attention.norm_eps = eps;
  config.json["partial_rotary_factor"] = double(config.count("rotary_dim", sizes.head_dim)) / sizes.head_dim;
  auto windows = layer_windows(config, sizes.num_hidden_layers); // names layers of a kind that isn't known
  int experts = config.count("num_local_experts");
  Selection how{.choices = config.count("num_experts_per_tok")};

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto moe = name + ".block_sparse_moe";
    GroupedAttention attend(
        weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope, windows[i]));
    stack_experts(weights, moe + ".experts", moe + ".switch_mlp", experts, numbered_projections);
    auto choose = choose_by_biased_sigmoid(weights, moe + ".e_score_correction_bias", experts, how);
    SparseMoe feed_forward(weights, moe + ".gate", moe + ".switch_mlp", experts, dims, sizes.intermediate_size, choose);
    model->add(pre_norm_block(weights, name, dims, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
