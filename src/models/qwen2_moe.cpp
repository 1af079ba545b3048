// Qwen1.5-MoE and Qwen2-MoE (arXiv 2407.10671): many small experts, and one that
// all tokens go to, gated.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
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
  require_off(config, "use_sliding_window"); // no layer says that it slides
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  attention.bias = config.boolean("qkv_bias", true);
  int dims = sizes.hidden_size;
  int choices = config.count("num_experts_per_tok");
  bool normalize = config.boolean("norm_topk_prob", false);
  float eps = config.number("rms_norm_eps", 1e-6);
  auto choose = [=](const mx::array& logits) { return choose_by_softmax(logits, choices, normalize); };

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 1e6}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto mlp = name + ".mlp";
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope));
    auto feed_forward = [&]() -> Decoder::Map {
      if (!is_sparse(config, i)) {
        return GatedMLP(weights, mlp, dims, config.count("intermediate_size"));
      }
      stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", config.count("num_experts"));
      return SparseMoeBlock(config, weights, mlp, dims, choose);
    }();
    model->add(pre_norm_block(weights, name, dims, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
