// Gear: Gemma 3's block; in place of attention some layers multiply each query with
// a convolved key and gate a convolved value by it.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/recurrent.h"

#include <cmath>

namespace parallm {

namespace {

class ConvMixer {
 public:
  ConvMixer(Weights& weights, const std::string& name, const Sizes& sizes, int kernel, bool bias, float eps)
      : sizes_(sizes),
        project_(weights, name, sizes, bias, bias),
        key_conv(weights, name + ".key_conv", width(sizes), kernel, bias, false),
        value_conv(weights, name + ".value_conv", width(sizes), kernel, bias, false),
        q_norm(weights, name + ".q_norm", sizes.head_dim, eps, 1),
        k_norm(weights, name + ".k_norm", sizes.head_dim, eps, 1) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project_(x);
    auto convolved = cache.recur({mx::flatten(k_norm(k), 1, 2), mx::flatten(v, 1, 2)}, [&](auto& in, auto& states) {
      return mx::stack({key_conv(in[0], states[0]), value_conv(in[1], states[1])}, 2);
    }); // [T,2,kv width]
    auto to_heads = [&](int part) {
      mx::Shape shape{x.shape(0), sizes_.num_key_value_heads, sizes_.head_dim};
      auto by_kv = mx::reshape(mx::take(convolved, part, 1), shape);
      return mx::repeat(by_kv, sizes_.num_attention_heads / sizes_.num_key_value_heads, 1);
    };
    return project_.out(mx::sigmoid(q_norm(q) * to_heads(0)) * to_heads(1));
  }

  static CacheSpec cache_spec(const Sizes& sizes, int kernel, mx::Dtype dtype) {
    StateSpec last{{kernel - 1, width(sizes)}, dtype};
    return {.states = {last, last}};
  }

 private:
  static int width(const Sizes& sizes) {
    return sizes.num_key_value_heads * sizes.head_dim;
  }

  Sizes sizes_;
  Projections project_;
  CausalConv key_conv;
  CausalConv value_conv;
  RMSNorm q_norm;
  RMSNorm k_norm;
};

} // namespace

std::unique_ptr<Model> make_gear(const Config& config, Weights& weights) {
  require_off(config, "use_bidirectional_attention");
  Sizes sizes(config);
  int dims = sizes.hidden_size, kernel = config.count("conv_L_cache", 3);
  float eps = config.number("rms_norm_eps", 1e-6);
  bool bias = config.boolean("attention_bias", false);
  auto act = activation(config.text("hidden_activation", "gelu_pytorch_tanh"));
  auto types = config.texts("layer_types");
  if (int(types.size()) != sizes.num_hidden_layers) {
    fail(
        Kind::invalid,
        "[{}] 'layer_types' must name {} layers; got {}",
        config.where,
        sizes.num_hidden_layers,
        types.size());
  }
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* full = model->keep(make_rope(config, sizes.head_dim, {.theta = 1e6}));
  auto* sliding = model->keep(plain_rope(sizes.head_dim, config.number("rope_local_base_freq", 10000)));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    auto mix = [&]() -> Decoder::Block {
      if (types[i] == "conv_mixer") {
        return ConvMixer(weights, name + ".local_mixer", sizes, kernel, bias, eps);
      }
      bool slides = types[i] == "sliding_attention";
      if (!slides && types[i] != "full_attention") {
        fail(
            Kind::invalid,
            "[{}] 'layer_types' may hold full_attention, sliding_attention and conv_mixer; got '{}'",
            config.where,
            types[i]);
      }
      auto how = scaled_attention(
          config.number("query_pre_attn_scalar", sizes.head_dim),
          slides ? sliding : full,
          slides ? config.count("sliding_window", 512) : 0);
      how.softcap = config.number("attn_logit_softcapping", 0);
      return NormedAttention(
          Projections(weights, name + ".self_attn", sizes, bias, bias),
          RMSNorm(weights, name + ".self_attn.q_norm", sizes.head_dim, eps, 1),
          RMSNorm(weights, name + ".self_attn.k_norm", sizes.head_dim, eps, 1),
          how);
    }();
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act);
    RMSNorm before_mix(weights, name + ".input_layernorm", dims, eps, 1);
    RMSNorm after_mix(weights, name + ".post_attention_layernorm", dims, eps, 1);
    RMSNorm before_mlp(weights, name + ".pre_feedforward_layernorm", dims, eps, 1);
    RMSNorm after_mlp(weights, name + ".post_feedforward_layernorm", dims, eps, 1);
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = x + after_mix(mix(before_mix(x), cache));
          return h + after_mlp(mlp(before_mlp(h)));
        },
        types[i] == "conv_mixer" ? ConvMixer::cache_spec(sizes, kernel, weights.dtype()) : sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps, 1);
  model->head = untied_head(with_defaults(config, {{"tie_word_embeddings", true}}), weights, sizes.vocab_size, dims);
  weights.ignore("model.embed_scale"); // the square root below
  weights.ignore("model.embed_tokens.embed_scale");
  float scale = std::sqrt(float(dims));
  model->embedded = [scale](const mx::array& x, Caches&) { return scaled(x, scale); };
  if (config.has("final_logit_softcapping")) {
    float cap = config.number("final_logit_softcapping");
    model->scored = [cap](const mx::array& x) { return softcapped(x, cap); };
  }
  return model;
}

} // namespace parallm
