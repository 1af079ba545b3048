// Mixtral (arXiv 2401.04088): Mistral with eight feed-forward experts, two of
// which each token goes to.
#include "models/decoder.h"
#include "models/rope_scaling.h"
#include "models/self_attention.h"
#include "nn/moe.h"

namespace parallm {

std::unique_ptr<Model> make_mixtral(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  SelfAttentionArgs attention(config);
  auto rope = std::make_shared<Rope>(make_rope(with_default(config, "rope_theta", 1e6), attention.head_dim));
  attention.rope = rope;
  attention.window = config.count("sliding_window", 0);
  int dims = attention.dims;
  int experts = config.count("num_local_experts", 8);
  int choices = config.count("num_experts_per_tok", 2);
  int hidden = config.count("intermediate_size", 14336);
  float eps = config.number("rms_norm_eps", 1e-5);
  auto choose = [choices](const mx::array& logits) { return choose_then_softmax(logits, choices); };

  auto parts = usual_parts(config, weights, dims, eps);
  for (int i = 0; i < config.count("num_hidden_layers", 32); ++i) {
    auto name = fmt::format("model.layers.{}", i);
    auto moe = name + ".block_sparse_moe";
    stack_experts(weights, moe + ".experts", moe + ".switch_mlp", experts, numbered_projections);
    SelfAttention attend(attention, weights, name + ".self_attn");
    SparseMoe block(weights, moe + ".gate", moe + ".switch_mlp", experts, dims, hidden, choose);
    parts.layers.push_back({pre_norm_block(weights, name, dims, eps, attend, block), attention.cache()});
  }
  parts.own_kv_past = rope->original_length;
  return make_decoder(std::move(parts));
}

} // namespace parallm
