// Qwen3-MoE (arXiv 2505.09388): norms of q and k in each head, experts in some
// layers. Also the text part of Qwen3-VL-MoE.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/moe.h"

#include <algorithm>

namespace parallm {

std::unique_ptr<Model> make_qwen3_moe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  float eps = config.number("rms_norm_eps");
  attention.norms = HeadNorms::each_head;
  attention.norm_eps = eps;
  attention.bias = attention.output_bias = config.boolean("attention_bias", false);
  int window = config.boolean("use_sliding_window", false) ? config.count("sliding_window") : 0;
  int dims = sizes.hidden_size;
  int experts = config.count("num_experts");
  int choices = config.count("num_experts_per_tok");
  int hidden = config.count("moe_intermediate_size");
  int step = config.count("decoder_sparse_step", 1);
  bool normalize = config.boolean("norm_topk_prob", false);
  auto dense = config.integers("mlp_only_layers");
  auto choose = [=](const mx::array& logits) { return choose_by_softmax(logits, choices, normalize); };

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto mlp = name + ".mlp";
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope, window));
    bool sparse = (i + 1) % step == 0 && std::find(dense.begin(), dense.end(), i) == dense.end();
    auto feed_forward = [&]() -> Decoder::Map {
      if (!sparse) {
        return GatedMLP(weights, mlp, dims, config.count("intermediate_size"));
      }
      stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", experts);
      return SparseMoe(weights, mlp + ".gate", mlp + ".switch_mlp", experts, dims, hidden, choose);
    }();
    model->add(pre_norm_block(weights, name, dims, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

/** The language model of a checkpoint that also sees; both of its layouts. */
std::unique_ptr<Model> make_qwen3_vl_moe(const Config& config, Weights& weights) {
  auto text = config.object("text_config");
  for (auto prefix : {"model.visual.", "visual.", "vision_tower."}) {
    weights.ignore(prefix);
  }
  weights.rename("model.language_model.", "model.");
  weights.rename("language_model.", "");
  for (int i = 0; i < text.count("num_hidden_layers"); ++i) {
    auto mlp = fmt::format("model.layers.{}.mlp", i);
    split_gate_up(weights, mlp + ".experts.gate_up_proj", mlp + ".switch_mlp", true);
    transpose_experts(weights, mlp + ".experts.down_proj", mlp + ".switch_mlp.down_proj");
  }
  return make_qwen3_moe(text, weights);
}

} // namespace parallm
