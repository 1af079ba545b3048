// Klear (Kuaishou): norms of q and k in each head; experts chosen by biased
// sigmoids and a shared one, whose shares a layer of its own gives.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

#include <algorithm>

namespace parallm {

namespace {

class SparseBlock {
 public:
  SparseBlock(const Config& config, Weights& weights, const std::string& name, int dims)
      : routed_([&] {
          int experts = config.count("num_experts"), hidden = config.count("moe_intermediate_size");
          Selection how{
              .choices = config.count("num_experts_per_tok"), .normalize = config.boolean("norm_topk_prob", true)};
          auto choose = choose_by_biased_sigmoid(weights, name + ".expert_bias", experts, how);
          stack_experts(weights, name + ".experts", name + ".experts", experts);
          return SparseMoe(weights, name + ".gate", name + ".experts", experts, dims, hidden, choose);
        }()),
        shared_experts(
            weights,
            name + ".shared_experts",
            dims,
            config.count("moe_intermediate_size") * config.count("n_shared_experts")),
        coefficient(weights, name + ".coefficient", 2, dims, true) {}

  mx::array operator()(const mx::array& x) const {
    auto shares = mx::split(mx::softmax(coefficient(x), -1, true), 2, 1);
    return routed_(x) * shares[0] + shared_experts(x) * shares[1];
  }

 private:
  SparseMoe routed_;
  GatedMLP shared_experts;
  Linear coefficient;
};

} // namespace

std::unique_ptr<Model> make_klear(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  attention.bias = attention.output_bias = config.boolean("attention_bias", false);
  attention.norms = HeadNorms::each_head;
  attention.norm_eps = config.number("rms_norm_eps", 1e-5);
  int dims = sizes.hidden_size, step = config.count("decoder_sparse_step", 1);
  auto dense = config.integers("mlp_only_layers");

  auto model = usual_decoder(config, weights, dims, attention.norm_eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope));
    bool sparse = (i + 1) % step == 0 && std::find(dense.begin(), dense.end(), i) == dense.end();
    auto feed_forward = sparse ? Decoder::Map(SparseBlock(config, weights, name + ".mlp", dims))
                               : GatedMLP(weights, name + ".mlp", dims, sizes.intermediate_size);
    model->add(pre_norm_block(weights, name, dims, attention.norm_eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
