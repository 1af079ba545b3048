// OLMoE (arXiv 2409.02060): q and k normed over all heads, every layer sparse.
#include "models/decoder.h"
#include "models/rope_scaling.h"
#include "models/self_attention.h"
#include "nn/moe.h"

namespace parallm {

std::unique_ptr<Model> make_olmoe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  SelfAttentionArgs attention(config);
  auto rope = std::make_shared<Rope>(make_rope(config, attention.head_dim));
  float eps = config.number("rms_norm_eps", 1e-5);
  attention.rope = rope;
  attention.norms = HeadNorms::all_heads;
  attention.norm_eps = eps;
  attention.bias = attention.output_bias = config.boolean("attention_bias", false);
  int dims = attention.dims;
  int experts = config.count("num_experts");
  int choices = config.count("num_experts_per_tok");
  bool normalize = config.boolean("norm_topk_prob", false);
  auto choose = [=](const mx::array& logits) { return choose_by_softmax(logits, choices, normalize); };

  auto parts = usual_parts(config, weights, dims, eps);
  for (int i = 0; i < config.count("num_hidden_layers"); ++i) {
    auto name = fmt::format("model.layers.{}", i);
    auto mlp = name + ".mlp";
    stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", experts);
    SelfAttention attend(attention, weights, name + ".self_attn");
    SparseMoe block(
        weights, mlp + ".gate", mlp + ".switch_mlp", experts, dims, config.count("intermediate_size"), choose);
    parts.layers.push_back({pre_norm_block(weights, name, dims, eps, attend, block), attention.cache()});
  }
  parts.own_kv_past = rope->original_length;
  return make_decoder(std::move(parts));
}

} // namespace parallm
