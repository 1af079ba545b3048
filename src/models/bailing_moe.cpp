// Ling and Ring (arXiv 2503.05139, 2510.22115): q, k and v one layer, experts
// chosen by softmax or by biased sigmoids, beside shared ones.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/moe.h"

namespace parallm {

namespace {

SparseMoe::Choose make_choice(const Config& config, Weights& weights, const std::string& moe, int experts) {
  auto score = config.text("score_function", "softmax");
  if (score != "softmax" && score != "sigmoid") {
    fail(Kind::invalid, "[{}] 'score_function' must be softmax or sigmoid; got '{}'", config.where, score);
  }
  std::optional<mx::array> bias;
  if (config.boolean("moe_router_enable_expert_bias", false)) {
    bias = weights.take(moe + ".gate.expert_bias", {experts}, mx::float32);
  }
  Selection how{
      .choices = config.count("num_experts_per_tok"),
      .groups = config.count("n_group", 1),
      .kept_groups = config.count("topk_group", 4),
      .normalize = config.boolean("norm_topk_prob", true),
      .scale = float(config.number("routed_scaling_factor", 1))};
  return [=, softmax = score == "softmax"](const mx::array& logits) {
    auto wide = mx::astype(logits, mx::float32);
    return choose_by_score(softmax ? mx::softmax(wide, -1, true) : mx::sigmoid(wide), bias, how);
  };
}

Decoder::Map make_moe(const Config& config, Weights& weights, const std::string& moe, int dims, bool bias) {
  int experts = config.count("num_experts"), hidden = config.count("moe_intermediate_size");
  stack_experts(weights, moe + ".experts", moe + ".switch_mlp", experts);
  weights.rename(moe + ".gate.weight", moe + ".gate.gate_proj.weight");
  weights.rename(moe + ".gate.bias", moe + ".gate.gate_proj.bias");
  auto choose = make_choice(config, weights, moe, experts);
  SparseMoe routed(weights, moe + ".gate.gate_proj", moe + ".switch_mlp", experts, dims, hidden, choose);
  int shared = config.integer("num_shared_experts", 0);
  if (shared == 0 || !config.boolean("moe_router_enable_shared_expert", true)) {
    return routed;
  }
  int width = config.count("moe_shared_expert_intermediate_size", hidden) * shared;
  GatedMLP all(weights, moe + ".shared_experts", dims, width, silu, bias);
  return [=](const mx::array& x) { return routed(x) + all(x); };
}

/** `norm_head`: each input's column of the output layer has length 1. */
void normalize_head(Weights& weights) {
  if (weights.has("lm_head.scales")) {
    return; // it was done before it was quantized
  }
  if (auto stored = weights.pull("lm_head.weight")) {
    auto wide = mx::astype(*stored, mx::float32);
    auto length = mx::sqrt(mx::sum(mx::square(wide), 0, true)) + mx::array(1e-7f);
    weights.put("lm_head.weight", mx::astype(wide / length, stored->dtype()));
  }
}

} // namespace

std::unique_ptr<Model> make_bailing_moe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  require_off(config, "norm_softmax");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  bool bias = config.boolean("use_bias", false), qkv_bias = config.boolean("use_qkv_bias", false);
  if (config.boolean("norm_head", false)) {
    normalize_head(weights);
  }
  auto positions = config;
  if (config.has("rotary_dim")) {
    positions.json["partial_rotary_factor"] = double(config.count("rotary_dim")) / sizes.head_dim;
  }

  auto model = std::make_unique<Decoder>(weights, "model.word_embeddings", sizes);
  auto* rope = model->keep(make_rope(positions, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    FusedProjections project(
        weights, name + ".attention", sizes, qkv_bias, bias, {.o = "dense", .qkv = "query_key_value"});
    auto how = scaled_attention(sizes.head_dim, rope);
    auto attend = [&]() -> Decoder::Block {
      if (!config.boolean("use_qk_norm", false)) {
        return SelfAttention(project, how);
      }
      RMSNorm q_norm(weights, name + ".attention.query_layernorm", sizes.head_dim, eps);
      RMSNorm k_norm(weights, name + ".attention.key_layernorm", sizes.head_dim, eps);
      return NormedAttention(project, q_norm, k_norm, how);
    }();
    auto feed_forward = [&]() -> Decoder::Map {
      if (!config.has("num_experts") || i < config.integer("first_k_dense_replace")) {
        return GatedMLP(weights, name + ".mlp", dims, sizes.intermediate_size, silu, bias);
      }
      return make_moe(config, weights, name + ".mlp", dims, bias);
    }();
    model->add(pre_norm_block(weights, name, dims, eps, attend, feed_forward), sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
