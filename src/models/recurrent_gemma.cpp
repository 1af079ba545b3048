// RecurrentGemma (arXiv 2404.07839), which is Griffin (arXiv 2402.19427): two
// layers of a gated linear recurrence, the RG-LRU, to one of sliding attention with
// one kv head.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/recurrent.h"

#include <cmath>

namespace parallm {

namespace {

using AtStart = std::shared_ptr<std::optional<mx::array>>; // float32 [T,1]: 1 at a sequence's first token

/** A matrix a head, with inputs first, and a bias. */
class BlockLinear {
 public:
  BlockLinear(Weights& weights, const std::string& name, int heads, int head_dim)
      : heads_(heads),
        weight_(weights.take(name + "_weight", {heads, head_dim, head_dim}, weights.dtype())),
        bias_(weights.take(name + "_bias", {heads, head_dim}, weights.dtype())) {}

  /** x [T,W] -> [T,W]. */
  mx::array operator()(const mx::array& x) const {
    auto by_head = mx::reshape(x, {x.shape(0), heads_, 1, -1});
    return mx::flatten(mx::squeeze(mx::matmul(by_head, weight_), 2) + bias_, 1, 2);
  }

 private:
  int heads_;
  mx::array weight_;
  mx::array bias_;
};

class RecurrentBlock {
 public:
  RecurrentBlock(const Sizes& sizes, int width, int kernel, Weights& weights, const std::string& name, AtStart at_start)
      : at_start_(std::move(at_start)),
        linear_y(weights, name + ".linear_y", width, sizes.hidden_size, true),
        linear_x(weights, name + ".linear_x", width, sizes.hidden_size, true),
        linear_out(weights, name + ".linear_out", sizes.hidden_size, width, true),
        conv_1d(weights, name + ".conv_1d", width, kernel, true, false),
        input_gate(weights, name + ".rg_lru.input_gate", sizes.num_attention_heads, width / sizes.num_attention_heads),
        recurrent_gate(
            weights,
            name + ".rg_lru.recurrent_gate",
            sizes.num_attention_heads,
            width / sizes.num_attention_heads),
        rate_(softplus(weights.take(name + ".rg_lru.recurrent_param", {width}, mx::float32))) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto out = cache.recur({linear_x(x), at_start_->value()}, [&](auto& in, auto& states) {
      auto mixed = conv_1d(in[0], states[0]);
      auto flat = mx::flatten(mixed, 0, 1);
      auto gate_x = mx::sigmoid(mx::astype(input_gate(flat), mx::float32));
      auto gate_a = mx::sigmoid(mx::astype(recurrent_gate(flat), mx::float32));
      auto log_a = mx::array(-8.0f) * gate_a * rate_;
      // What comes in grows as what is kept shrinks; but all of a sequence's first token comes in.
      auto first = mx::greater(mx::flatten(in[1], 0, 1), mx::array(0.0f));
      auto growth = mx::where(first, mx::array(1.0f), mx::sqrt(mx::array(1.0f) - mx::exp(mx::array(2.0f) * log_a)));
      auto gated = mx::astype(flat, mx::float32) * gate_x * growth;
      auto y = linear_scan(mx::reshape(log_a, mixed.shape()), mx::reshape(gated, mixed.shape()), states[1]);
      return mx::astype(y, mixed.dtype());
    });
    return linear_out(out * gelu_tanh(linear_y(x)));
  }

  static CacheSpec cache_spec(int width, int kernel, mx::Dtype dtype) {
    return {.states = {{{kernel - 1, width}, dtype}, {{width}, mx::float32}}};
  }

 private:
  AtStart at_start_;
  Linear linear_y;
  Linear linear_x;
  Linear linear_out;
  CausalConv conv_1d;
  BlockLinear input_gate;
  BlockLinear recurrent_gate;
  mx::array rate_; // [width]
};

/** "recurrent" or "attention" for each layer, by a pattern that repeats. */
std::vector<bool> attention_layers(const Config& config, int layers) {
  auto types = config.texts(config.has("block_types") ? "block_types" : "_block_types"); // 2B and 9B differ
  std::vector<bool> attends(layers);
  for (int i = 0; i < layers; ++i) {
    auto& type = types.at(i % types.size());
    attends[i] = type == "attention";
    if (!attends[i] && type != "recurrent") {
      fail(Kind::invalid, "[{}] 'block_types' may hold recurrent and attention; got '{}'", config.where, type);
    }
  }
  return attends;
}

} // namespace

std::unique_ptr<Model> make_recurrent_gemma(const Config& given, Weights& weights) {
  auto config = given;
  config.json["num_key_value_heads"] = 1;
  require_text(config, "hidden_activation", "gelu_pytorch_tanh");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  int width = config.count("lru_width", dims), kernel = config.count("conv1d_width", 4);
  if (width != dims) { // mlx-lm has no such model
    fail(Kind::invalid, "[{}] 'lru_width' must be 'hidden_size', {}; got {}", config.where, dims, width);
  }
  int window = config.count("attention_window_size");
  constexpr float inner_eps = 1e-5f; // mlx-lm's, whatever rms_norm_eps says
  auto attends = attention_layers(config, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.partial = 0.5}));
  auto at_start = std::make_shared<std::optional<mx::array>>();
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i), part = name + ".temporal_block";
    auto mix = [&]() -> Decoder::Block {
      if (attends[i]) {
        bool bias = config.boolean("attention_bias", false);
        return SelfAttention(
            Projections(weights, part, sizes, bias, true), scaled_attention(sizes.head_dim, rope, window));
      }
      return RecurrentBlock(sizes, width, kernel, weights, part, at_start);
    }();
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".temporal_pre_norm", dims, inner_eps, 1),
            mix,
            RMSNorm(weights, name + ".channel_pre_norm", dims, inner_eps, 1),
            GatedMLP(weights, name + ".mlp_block", dims, sizes.intermediate_size / 2, gelu_tanh, true)),
        attends[i] ? sizes.cache() : RecurrentBlock::cache_spec(width, kernel, weights.dtype()));
  }
  model->norm = RMSNorm(weights, "model.final_norm", dims, config.number("rms_norm_eps", 1e-6), 1);
  if (weights.has("lm_head.weight")) {
    model->head = Linear(weights, "lm_head", sizes.vocab_size, dims);
  }
  float scale = config.boolean("embeddings_scale_by_sqrt_dim", true) ? std::sqrt(float(dims)) : 1;
  model->embedded = [=](const mx::array& x, Caches& caches) {
    auto first = mx::equal(caches.positions(), mx::array(0));
    *at_start = mx::astype(mx::expand_dims(first, 1), mx::float32);
    return scaled(x, scale);
  };
  if (config.has("logits_soft_cap")) {
    float cap = config.number("logits_soft_cap");
    model->scored = [cap](const mx::array& x) { return softcapped(x, cap); };
  }
  return model;
}

} // namespace parallm
