#include "models/deepseek_v41_names.h"

#include "nn/moe.h"

#include <fmt/format.h>

#include <algorithm>

namespace parallm {

namespace {

constexpr std::pair<std::string_view, std::string_view> names[] = { // in this order
    {".attn.", ".self_attn."},
    {".ffn.", ".mlp."},
    {".attn_norm.", ".input_layernorm."},
    {".ffn_norm.", ".post_attention_layernorm."},
    {".hc_attn_", ".attn_hc."},
    {".hc_ffn_", ".ffn_hc."},
    {".attn_sink", ".sinks"},
    {".wq_a.", ".q_a_proj."},
    {".wq_b.", ".q_b_proj."},
    {".wkv.", ".kv_proj."},
    {".wgate.", ".gate_proj."},
    {".wo_a.", ".o_a_proj."},
    {".wo_b.", ".o_b_proj."},
    {".q_norm.", ".q_a_norm."},
    {".compressor.norm.", ".compressor.kv_norm."},
    {".indexer.wk.", ".indexer.k_proj."},
    {".gate.bias", ".gate.e_score_correction_bias"},
    {".shared_experts.w1.", ".shared_experts.gate_proj."},
    {".shared_experts.w2.", ".shared_experts.down_proj."},
    {".shared_experts.w3.", ".shared_experts.up_proj."}};

std::string renamed(std::string name) {
  if (name == "head.weight") {
    return "lm_head.weight";
  }
  if (name == "embed.weight") {
    return "model.embed_tokens.weight";
  }
  name.insert(0, "model.");
  for (auto& [theirs, ours] : names) {
    if (auto at = name.find(theirs); at != std::string::npos) {
      name.replace(at, theirs.size(), ours);
    }
  }
  return name;
}

/** What draws images, guesses several tokens, or chooses experts for images' tokens. */
bool is_of_another_part(const std::string& name) {
  constexpr std::string_view parts[] = {"vision.", "aligner.", "image_", "mtp."};
  return std::any_of(std::begin(parts), std::end(parts), [&](auto part) { return name.starts_with(part); }) ||
      name.find(".engram.") != std::string::npos || name.ends_with(".gate.bias_vl");
}

/** Powers of 2, one a row or one for 32 rows, as e8m0 bytes, one a row. */
mx::array row_exponents(mx::array scales, int rows) {
  if (scales.dtype() != mx::uint8) {
    scales = mx::astype(mx::round(mx::log2(mx::astype(scales, mx::float32))) + mx::array(127.0f), mx::uint8);
  }
  if (scales.shape(0) != rows) {
    scales = mx::repeat(scales, 32, 0);
    scales = mx::contiguous(mx::slice(scales, {0, 0}, {std::min(rows, scales.shape(0)), scales.shape(1)}));
  }
  return scales;
}

} // namespace

void from_published_v41(Weights& weights, int layers, int groups, int experts) {
  if (!weights.has("embed.weight")) {
    return;
  }
  const std::string weight = ".weight", scale = ".scale";
  for (auto& name : weights.names_ending("")) {
    if (name.ends_with(scale) && weights.has(name.substr(0, name.size() - scale.size()) + weight)) {
      continue; // goes along with its weight
    }
    auto array = *weights.pull(name);
    if (is_of_another_part(name)) {
      weights.pull(name.substr(0, name.rfind('.')) + scale);
      continue;
    }
    auto to = renamed(name);
    const bool is_weight = name.ends_with(weight);
    const auto layer = to.substr(0, to.rfind('.'));
    const auto in_groups = [&](const mx::array& x) { // o_a_proj has a matrix for each group of heads
      return layer.ends_with(".o_a_proj") ? mx::reshape(x, {groups, -1, x.shape(-1)}) : x;
    };
    if (auto scales = is_weight ? weights.pull(name.substr(0, name.size() - weight.size()) + scale) : std::nullopt) {
      weights.put(layer + ".scales", in_groups(row_exponents(*scales, array.shape(0))));
      array = mx::view(array, mx::uint32);
    }
    weights.put(to, in_groups(array));
  }
  for (int i = 0; i < layers; ++i) {
    auto moe = fmt::format("model.layers.{}.mlp.experts", i);
    stack_experts(weights, moe, moe + ".switch_mlp", experts, numbered_projections);
  }
}

} // namespace parallm
