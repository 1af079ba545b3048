// Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671): many small experts, and one that
// all tokens go to, gated.
#include "base/error.h"
#include "models/decoder.h"
#include "models/rope_scaling.h"
#include "models/self_attention.h"
#include "nn/mlp.h"
#include "nn/moe.h"

#include <algorithm>

namespace parallm {

namespace {

class SparseMoeBlock {
 public:
  SparseMoeBlock(const Config& config, Weights& weights, const std::string& name, int dims, SparseMoe::Choose choose)
      : routed_(
            weights,
            name + ".gate",
            name + ".switch_mlp",
            config.count("num_experts"),
            dims,
            config.count("moe_intermediate_size"),
            std::move(choose)),
        shared_expert(weights, name + ".shared_expert", dims, config.count("shared_expert_intermediate_size")),
        shared_expert_gate(weights, name + ".shared_expert_gate", 1, dims) {}

  mx::array operator()(const mx::array& x) const {
    return routed_(x) + mx::sigmoid(shared_expert_gate(x)) * shared_expert(x);
  }

 private:
  SparseMoe routed_;
  GatedMLP shared_expert;
  Linear shared_expert_gate;
};

/** transformers' rule (modeling_qwen2_moe.py); mlx-lm takes all layers as sparse. */
bool is_sparse(const Config& config, int layer) {
  auto dense = config.integers("mlp_only_layers");
  return std::find(dense.begin(), dense.end(), layer) == dense.end() &&
      (layer + 1) % config.count("decoder_sparse_step", 1) == 0;
}

} // namespace

std::unique_ptr<Model> make_qwen2_moe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  if (config.boolean("use_sliding_window", false)) {
    fail(Kind::invalid, "[{}] 'use_sliding_window' must be false: no layer says that it slides", config.where);
  }
  SelfAttentionArgs attention(config);
  auto rope = std::make_shared<Rope>(make_rope(with_default(config, "rope_theta", 1e6), attention.head_dim));
  attention.rope = rope;
  attention.bias = config.boolean("qkv_bias", true);
  int dims = attention.dims;
  int choices = config.count("num_experts_per_tok");
  bool normalize = config.boolean("norm_topk_prob", false);
  float eps = config.number("rms_norm_eps", 1e-6);
  auto choose = [=](const mx::array& logits) { return choose_by_softmax(logits, choices, normalize); };

  auto parts = usual_parts(config, weights, dims, eps);
  for (int i = 0; i < config.count("num_hidden_layers"); ++i) {
    auto name = fmt::format("model.layers.{}", i);
    auto mlp = name + ".mlp";
    SelfAttention attend(attention, weights, name + ".self_attn");
    auto feed_forward = [&]() -> Map {
      if (!is_sparse(config, i)) {
        return GatedMLP(weights, mlp, dims, config.count("intermediate_size"));
      }
      stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", config.count("num_experts"));
      return SparseMoeBlock(config, weights, mlp, dims, choose);
    }();
    parts.layers.push_back({pre_norm_block(weights, name, dims, eps, attend, feed_forward), attention.cache()});
  }
  parts.own_kv_past = rope->original_length;
  return make_decoder(std::move(parts));
}

} // namespace parallm
