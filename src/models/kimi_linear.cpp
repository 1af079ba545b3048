// Kimi Linear (arXiv 2510.26692): three layers of Kimi Delta Attention, a delta
// rule that forgets each key's dim at its own rate, to one of latent attention
// without positions; DeepSeek-V3's experts.
#include "base/error.h"
#include "models/kimi_delta_attention.h"
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/shared_experts.h"

#include <algorithm>

namespace parallm {

namespace {

/** Hugging Face's names and shapes to mlx-lm's. */
void to_ours(Weights& weights, const std::string& layer, int experts) {
  auto moe = layer + ".block_sparse_moe", attention = layer + ".self_attn";
  stack_experts(weights, moe + ".experts", layer + ".mlp.switch_mlp", experts, numbered_projections);
  weights.rename(moe + ".shared_experts.", layer + ".mlp.shared_experts.");
  weights.rename(moe + ".gate.e_score_correction_bias", layer + ".mlp.e_score_correction_bias");
  weights.rename(moe + ".gate.", layer + ".mlp.gate.");
  for (std::string part : {"q", "k", "v"}) {
    auto ours = fmt::format("{}.{}_conv.conv.", attention, part);
    weights.rename(fmt::format("{}.{}_conv1d.", attention, part), ours);
  }
  if (auto stored = weights.pull(attention + ".dt_bias")) {
    weights.put(attention + ".dt_bias", mx::flatten(*stored));
  }
}

} // namespace

std::unique_ptr<Model> make_kimi_linear(const Config& given, Weights& weights) {
  auto config = with_names(
      kimi_with_deepseek_names(given),
      {{"scoring_func", "moe_router_activation_func"}, {"qk_nope_head_dim", "head_dim"}, {"v_head_dim", "head_dim"}});
  require_text(config, "hidden_act", "silu");
  if (!config.boolean("mla_use_nope", true)) {
    fail(Kind::invalid, "[{}] 'mla_use_nope' must be true; got false", config.where);
  }
  weights.ignore("model.mtp");
  LatentArgs attention(config);
  attention.norm_eps = config.number("rms_norm_eps", 1e-5);
  auto linear_config = config.object("linear_attn_config");
  KimiDeltaArgs delta{
      .hidden = config.count("hidden_size"),
      .heads = linear_config.count("num_heads"),
      .head_dim = linear_config.count("head_dim"),
      .kernel = linear_config.count("short_conv_kernel_size", 4),
      .eps = attention.norm_eps};
  auto linear = linear_config.integers("kda_layers"); // counted from 1
  int dims = attention.hidden_size;

  auto model = usual_decoder(config, weights, dims, attention.norm_eps);
  for (int i = 0; i < config.count("num_hidden_layers"); ++i) {
    auto name = layer_name(i), part = name + ".self_attn";
    to_ours(weights, name, config.count("num_experts"));
    bool is_linear = std::find(linear.begin(), linear.end(), i + 1) != linear.end();
    auto attend = [&]() -> Decoder::Block {
      if (is_linear) {
        return KimiDeltaAttention(delta, weights, part);
      }
      split_kv_b(weights, part, attention, true);
      return LatentAttention(weights, part, attention, nullptr);
    }();
    auto feed_forward = [&]() -> Decoder::Map {
      if (!is_deepseek_moe_layer(config, i)) {
        return GatedMLP(weights, name + ".mlp", dims, config.count("intermediate_size"));
      }
      return deepseek_v3_moe(config, weights, name + ".mlp", {.bias = "e_score_correction_bias"});
    }();
    model->add(
        pre_norm_block(weights, name, dims, attention.norm_eps, attend, feed_forward),
        is_linear ? KimiDeltaAttention::cache_spec(delta, weights.dtype()) : attention.cache());
  }
  return model;
}

} // namespace parallm
