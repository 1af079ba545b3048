// gpt-oss (OpenAI's model card, arXiv 2508.10925): attention with sinks, windows
// in every second layer, clamped experts in mxfp4.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/moe.h"

namespace parallm {

namespace {

/** Rows 0, 2, 4, ... (gates) and 1, 3, 5, ... (ups) of axis 1. */
void put_in_turn(Weights& weights, const mx::array& both, const std::string& to, const std::string& part) {
  for (int i : {0, 1}) {
    mx::Shape start(both.ndim(), 0), strides(both.ndim(), 1);
    start[1] = i;
    strides[1] = 2;
    weights.put(
        to + (i == 0 ? ".gate_proj" : ".up_proj") + part,
        mx::contiguous(mx::slice(both, start, both.shape(), strides)));
  }
}

/** OpenAI's layout: gates and ups in turn; codes as bytes [E, rows, groups, 16]. */
void take_apart(Weights& weights, const std::string& experts) {
  const auto codes = [](const mx::array& blocks) { return mx::flatten(mx::view(blocks, mx::uint32), 2, 3); };
  if (auto blocks = weights.pull(experts + ".gate_up_proj_blocks")) {
    put_in_turn(weights, codes(*blocks), experts, ".weight");
  }
  if (auto scales = weights.pull(experts + ".gate_up_proj_scales")) {
    put_in_turn(weights, *scales, experts, ".scales");
  }
  if (auto bias = weights.pull(experts + ".gate_up_proj_bias")) {
    put_in_turn(weights, *bias, experts, ".bias");
  }
  if (auto blocks = weights.pull(experts + ".down_proj_blocks")) {
    weights.put(experts + ".down_proj.weight", codes(*blocks));
  }
  weights.rename(experts + ".down_proj_scales", experts + ".down_proj.scales");
  weights.rename(experts + ".down_proj_bias", experts + ".down_proj.bias");
}

} // namespace

std::unique_ptr<Model> make_gpt_oss(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"head_dim", 64}, {"sliding_window", 128}});
  require_text(config, "hidden_act", "silu");
  if (config.has("rope_scaling")) {
    // mlx-lm's YaRN, the reference here, rounds to whole dims whatever this says.
    config.json["rope_scaling"].as_object().erase("truncate");
  }
  GroupedAttentionArgs attention{Sizes(config)};
  attention.bias = attention.output_bias = config.boolean("attention_bias", true);
  auto& sizes = attention.sizes;
  auto windows = layer_windows(config, sizes.num_hidden_layers, 2);
  int dims = sizes.hidden_size;
  int choices = config.count("num_experts_per_tok", 4);
  float eps = config.number("rms_norm_eps", 1e-5);
  float limit = config.number("swiglu_limit", 7);
  auto choose = [=](const mx::array& logits) { return choose_then_softmax(logits, choices); };
  auto act = [=](const mx::array& gate, const mx::array& up) { return clamped_swiglu(gate, up, 1.702f, limit); };

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 150000}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto how = scaled_attention(sizes.head_dim, rope, windows[i]);
    how.sinks = weights.take(name + ".self_attn.sinks", {sizes.num_attention_heads}, mx::float32);
    GroupedAttention attend(weights, name + ".self_attn", attention, how);
    auto experts = name + ".mlp.experts";
    take_apart(weights, experts);
    SparseMoe block(
        weights,
        name + ".mlp.router",
        experts,
        config.count("num_local_experts", 128),
        dims,
        sizes.intermediate_size,
        choose,
        act);
    model->add(pre_norm_block(weights, name, dims, eps, attend, block), sizes.cache());
  }
  return model;
}

} // namespace parallm
