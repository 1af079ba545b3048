// DeepSeekMoE (arXiv 2401.06066): many small routed experts beside some that all
// tokens go to; and DeepSeek-V3's choice among the routed (arXiv 2412.19437), by
// biased sigmoids, which many models took over. Engine thread only.
#pragma once

#include "models/decoder.h"
#include "nn/mlp.h"
#include "nn/moe.h"

#include <optional>

namespace parallm {

/** config.json's fields by DeepSeek's names; a model whose names differ puts
 * them in first. */
struct DeepseekMoeArgs {
  explicit DeepseekMoeArgs(const Config& config);

  int hidden_size;
  int moe_intermediate_size;
  int n_routed_experts;
  int n_shared_experts; // 0: none
  Selection selection; // num_experts_per_tok, n_group, topk_group, norm_topk_prob, routed_scaling_factor
};

/** Below a block's name. */
struct DeepseekMoeNames {
  std::string gate = "gate";
  std::string bias = "gate.e_score_correction_bias";
  std::string experts = "switch_mlp";
  std::string separate = "experts"; // each on its own, in Hugging Face's layout
  std::string shared = "shared_experts";
};

class DeepseekMoe {
 public:
  DeepseekMoe(
      Weights& weights,
      const std::string& name,
      const DeepseekMoeArgs& args,
      SparseMoe::Choose choose,
      const DeepseekMoeNames& names = {});

  /** x [T,D] -> [T,D]. */
  mx::array operator()(const mx::array& x) const;

 private:
  SparseMoe routed_;
  std::optional<GatedMLP> shared_;
};

/** sigmoid(logits), plus the bias for the choice alone. Takes the bias. */
SparseMoe::Choose choose_by_biased_sigmoid(Weights& weights, const std::string& bias, int experts, Selection how);

/** The block of DeepSeek-V3 and its like. Errors: a `scoring_func` or
 * `topk_method` other than theirs. */
DeepseekMoe
deepseek_v3_moe(const Config& config, Weights& weights, const std::string& name, const DeepseekMoeNames& names = {});

/** n_routed_experts is set, the layer is past first_k_dense_replace, and one of
 * every moe_layer_freq. */
bool is_deepseek_moe_layer(const Config& config, int layer);

/** The layers of multi-token prediction behind the model's own are left alone:
 * `count` of them. */
void ignore_layers_from(Weights& weights, int first, int count);

} // namespace parallm
