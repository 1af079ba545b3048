// Qwen3-MoE (arXiv 2505.09388): norms of q and k in each head, experts in some
// layers. Also the text part of Qwen3-VL-MoE.
#include "models/decoder.h"
#include "models/rope_scaling.h"
#include "models/self_attention.h"
#include "nn/mlp.h"
#include "nn/moe.h"

#include <algorithm>

namespace parallm {

std::unique_ptr<Model> make_qwen3_moe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  SelfAttentionArgs attention(config);
  auto rope = std::make_shared<Rope>(make_rope(config, attention.head_dim));
  float eps = config.number("rms_norm_eps");
  attention.rope = rope;
  attention.norms = HeadNorms::each_head;
  attention.norm_eps = eps;
  attention.bias = attention.output_bias = config.boolean("attention_bias", false);
  if (config.boolean("use_sliding_window", false)) {
    attention.window = config.count("sliding_window");
  }
  int dims = attention.dims;
  int experts = config.count("num_experts");
  int choices = config.count("num_experts_per_tok");
  int hidden = config.count("moe_intermediate_size");
  int step = config.count("decoder_sparse_step", 1);
  bool normalize = config.boolean("norm_topk_prob", false);
  auto dense = config.integers("mlp_only_layers");
  auto choose = [=](const mx::array& logits) { return choose_by_softmax(logits, choices, normalize); };

  auto parts = usual_parts(config, weights, dims, eps);
  for (int i = 0; i < config.count("num_hidden_layers"); ++i) {
    auto name = fmt::format("model.layers.{}", i);
    auto mlp = name + ".mlp";
    SelfAttention attend(attention, weights, name + ".self_attn");
    bool sparse = (i + 1) % step == 0 && std::find(dense.begin(), dense.end(), i) == dense.end();
    auto feed_forward = [&]() -> Map {
      if (!sparse) {
        return GatedMLP(weights, mlp, dims, config.count("intermediate_size"));
      }
      stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", experts);
      return SparseMoe(weights, mlp + ".gate", mlp + ".switch_mlp", experts, dims, hidden, choose);
    }();
    parts.layers.push_back({pre_norm_block(weights, name, dims, eps, attend, feed_forward), attention.cache()});
  }
  parts.own_kv_past = rope->original_length;
  return make_decoder(std::move(parts));
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
