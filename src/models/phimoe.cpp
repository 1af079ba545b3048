// Phi-3.5-MoE (arXiv 2404.14219): Phi-3 with layer norms, biases everywhere in
// attention, and sixteen experts that SparseMixer (arXiv 2310.00811) chooses.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/moe.h"

#include <limits>

namespace parallm {

namespace {

/** SparseMixer as it runs after training: the choices one after another, each
 * the greatest of what is left; its weight is its share among those left that
 * lie within a relative distance of 2 * jitter of it. logits [T,E]. */
Choice sparse_mixer(const mx::array& logits, int choices, float jitter) {
  auto scores = mx::astype(logits, mx::float32);
  auto none = mx::array(-std::numeric_limits<float>::infinity());
  auto left = scores;
  std::vector<mx::array> experts, weights;
  for (int i = 0; i < choices; ++i) {
    auto expert = mx::argmax(left, 1, true);
    auto top = mx::max(left, 1, true);
    auto distance = (top - scores) / mx::maximum(mx::abs(scores), top);
    auto near = mx::where(mx::greater(distance, mx::array(2 * jitter)), none, left);
    experts.push_back(mx::astype(expert, mx::int32));
    weights.push_back(mx::take_along_axis(mx::softmax(near, 1), expert, 1));
    left = mx::put_along_axis(left, expert, mx::broadcast_to(none, expert.shape()), 1);
  }
  return {mx::concatenate(experts, 1), mx::concatenate(weights, 1)};
}

} // namespace

std::unique_ptr<Model> make_phimoe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-6); // of layer norms all the same
  int experts = config.count("num_local_experts", 16);
  int choices = config.count("num_experts_per_tok", 2);
  float jitter = config.number("router_jitter_noise", 0.01);
  bool bias = config.boolean("attention_bias", true);
  if (choices > experts) {
    fail(
        Kind::invalid,
        "[phimoe] 'num_experts_per_tok' must be at most 'num_local_experts', {}; got {}",
        experts,
        choices);
  }
  auto choose = [=](const mx::array& logits) { return sparse_mixer(logits, choices, jitter); };
  auto windows = same_windows(config, sizes.num_hidden_layers);

  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    auto moe = name + ".block_sparse_moe";
    stack_experts(weights, moe + ".experts", moe + ".switch_mlp", experts, numbered_projections);
    model->add(
        PreNormBlock(
            LayerNorm(weights, name + ".input_layernorm", sizes.hidden_size, eps, true),
            SelfAttention(
                Projections(weights, name + ".self_attn", sizes, bias, bias),
                scaled_attention(sizes.head_dim, rope, windows[i])),
            LayerNorm(weights, name + ".post_attention_layernorm", sizes.hidden_size, eps, true),
            SparseMoe(
                weights,
                moe + ".gate",
                moe + ".switch_mlp",
                experts,
                sizes.hidden_size,
                sizes.intermediate_size,
                choose)),
        sizes.cache());
  }
  model->norm = LayerNorm(weights, "model.norm", sizes.hidden_size, eps, true);
  model->head = untied_head(config, weights, sizes.vocab_size, sizes.hidden_size);
  return model;
}

} // namespace parallm
