// ERNIE 4.5 with experts (Baidu's technical report, 2025): pairs of neighbours
// rotated, shared experts beside those chosen.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/moe.h"

#include <algorithm>

namespace parallm {

namespace {

/** The chosen scores made to sum to 1. transformers adds the bias for the choice,
 * where the file has one; mlx-lm drops it. */
SparseMoe::Choose make_choice(const Config& config, Weights& weights, const std::string& moe, int experts) {
  auto score = config.text("moe_gate_act", "softmax");
  if (score != "softmax" && score != "sigmoid") {
    fail(Kind::invalid, "[{}] 'moe_gate_act' must be softmax or sigmoid; got '{}'", config.where, score);
  }
  std::optional<mx::array> bias;
  auto name = moe + ".moe_statics.e_score_correction_bias";
  if (weights.has(name)) {
    bias = mx::flatten(weights.take(name, {1, experts}, mx::float32));
  }
  Selection how{.choices = config.count("moe_k", 1), .normalize = false};
  return [=, softmax = score == "softmax"](const mx::array& logits) {
    auto wide = mx::astype(logits, mx::float32);
    auto choice = choose_by_score(softmax ? mx::softmax(wide, -1, true) : mx::sigmoid(wide), bias, how);
    auto sum = mx::maximum(mx::sum(choice.weights, -1, true), mx::array(1e-12f));
    return Choice{choice.experts, choice.weights / sum};
  };
}

/** An integer, or of a list (one for text, one for images) the first. */
int first_of(const Config& config, const char* field, int fallback) {
  auto values = config.integers(field);
  return values.empty() ? fallback : values[0];
}

} // namespace

std::unique_ptr<Model> make_ernie4_5_moe(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"rope_traditional", true}, {"rope_theta", 500000}});
  require_text(config, "hidden_act", "silu");
  for (auto* of_drafts :
       {"model.mtp_block.", "model.mtp_linear_proj.", "model.mtp_hidden_norm.", "model.mtp_emb_norm."}) {
    weights.ignore(of_drafts);
  }
  bool bias = config.boolean("use_bias", false);
  GroupedAttentionArgs attention{.sizes = Sizes(config), .bias = bias, .output_bias = bias};
  auto& sizes = attention.sizes;
  int dims = sizes.hidden_size, layers = sizes.num_hidden_layers;
  float eps = config.number("rms_norm_eps", 1e-5);
  int experts = config.count("moe_num_experts");
  int hidden =
      config.integer("moe_intermediate_size", 0) > 0 ? config.count("moe_intermediate_size") : sizes.intermediate_size;
  int shared = config.integer("moe_num_shared_experts", 0);
  int first = first_of(config, "moe_layer_start_index", 0), last = first_of(config, "moe_layer_end_index", layers - 1);
  if (last < 0) { // the last
    last = layers - 1;
  }
  int interval = config.count("moe_layer_interval", 1);

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < layers; ++i) {
    auto name = layer_name(i);
    auto mlp = name + ".mlp";
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope));
    auto feed_forward = [&]() -> Decoder::Map {
      if ((i + 1) % interval != 0 || i < first || i > last) {
        return GatedMLP(weights, mlp, dims, sizes.intermediate_size, silu, bias);
      }
      stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", experts);
      auto choose = make_choice(config, weights, mlp, experts);
      SparseMoe routed(weights, mlp + ".gate", mlp + ".switch_mlp", experts, dims, hidden, choose);
      if (shared == 0) {
        return routed;
      }
      GatedMLP all(weights, mlp + ".shared_experts", dims, hidden * shared, silu, bias);
      return [=](const mx::array& x) { return routed(x) + all(x); };
    }();
    model->add(pre_norm_block(weights, name, dims, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
