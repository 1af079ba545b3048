// Baichuan-M1 (arXiv 2502.12671): each key and value is mixed with the one before;
// sliding layers have heads of their own.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <algorithm>

namespace parallm {

namespace {

class MixingAttention {
 public:
  MixingAttention(Weights& weights, const std::string& name, const Sizes& sizes, Attention how)
      : kv_heads_(sizes.num_key_value_heads),
        how_(std::move(how)),
        project_(weights, name, sizes, false, false, {.qkv = "W_pack"}),
        conv_k(weights.take(name + ".conv_k", {1, 1, kv_heads_, 1, 2}, mx::float32)),
        conv_v(weights.take(name + ".conv_v", {1, 1, kv_heads_, 1, 2}, mx::float32)) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project_(x);
    auto mixed = cache.recur({k, v}, [&](auto& in, auto& states) {
      return mx::stack({mix(in[0], conv_k, states[0]), mix(in[1], conv_v, states[1])}, 2);
    }); // [T,2,G,D]
    return project_.out(cache.attend(q, mx::take(mixed, 0, 1), mx::take(mixed, 1, 1), how_));
  }

  static CacheSpec cache_spec(const Sizes& sizes, mx::Dtype dtype) {
    auto spec = sizes.cache();
    StateSpec last{{1, sizes.num_key_value_heads, sizes.head_dim}, dtype};
    spec.states = {last, last};
    return spec;
  }

 private:
  /** x [B,L,G,D]; state [B,1,G,D] the token before. */
  mx::array mix(const mx::array& x, const mx::array& weights, mx::array& state) const {
    auto by_age = mx::split(mx::reshape(weights, {kv_heads_, 2}), 2, 1); // [G,1]: the one before, this one
    auto all = mx::concatenate({state, x}, 1);
    int length = x.shape(1);
    auto part = [&](int first, int end) {
      return mx::slice(all, {0, first, 0, 0}, {x.shape(0), end, x.shape(2), x.shape(3)});
    };
    state = part(length, length + 1);
    auto wide = [](const mx::array& y) { return mx::astype(y, mx::float32); };
    return mx::astype(wide(part(0, length)) * by_age[0] + wide(x) * by_age[1], x.dtype());
  }

  int kv_heads_;
  Attention how_;
  FusedProjections project_;
  mx::array conv_k; // [1,1,kv_heads,1,2]
  mx::array conv_v;
};

/** The output layer's rows have length 1. */
void normalize_head(Weights& weights) {
  if (weights.has("lm_head.scales")) {
    return; // it was done before it was quantized
  }
  if (auto stored = weights.pull("lm_head.weight")) {
    auto wide = mx::astype(*stored, mx::float32);
    auto length = mx::sqrt(mx::sum(mx::square(wide), -1, true)) + mx::array(1e-7f);
    weights.put("lm_head.weight", mx::astype(wide / length, stored->dtype()));
  }
}

} // namespace

std::unique_ptr<Model> make_baichuan_m1(const Config& config, Weights& weights) {
  if (config.count("conv_window") != 2) {
    fail(Kind::invalid, "[{}] 'conv_window' must be 2; got {}", config.where, config.count("conv_window"));
  }
  require_off(config, "tie_word_embeddings");
  Sizes full(config);
  auto other = config;
  other.json["num_attention_heads"] = config.count("num_swa_attention_heads", full.num_attention_heads);
  other.json["num_key_value_heads"] = config.count("num_swa_key_value_heads", full.num_key_value_heads);
  Sizes sliding(other);
  int dims = full.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  auto act = activation(config.text("hidden_act", "silu"));
  auto slides = config.integers("sliding_window_layers");
  normalize_head(weights);

  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", full);
  auto* full_rope = model->keep(make_rope(config, full.head_dim));
  auto* sliding_rope = model->keep(make_rope(config, sliding.head_dim));
  for (int i = 0; i < full.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    bool slide = std::find(slides.begin(), slides.end(), i) != slides.end();
    auto& sizes = slide ? sliding : full;
    auto how =
        scaled_attention(sizes.head_dim, slide ? sliding_rope : full_rope, slide ? config.count("sliding_window") : 0);
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", dims, eps),
            MixingAttention(weights, name + ".self_attn", sizes, how),
            RMSNorm(weights, name + ".post_attention_layernorm", dims, eps),
            GatedMLP(weights, name + ".mlp", dims, full.intermediate_size, act)),
        MixingAttention::cache_spec(sizes, weights.dtype()));
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = Linear(weights, "lm_head", full.vocab_size, dims);
  return model;
}

} // namespace parallm
