// MiMo-V2-Flash (arXiv 2601.02780): sliding layers with sinks and heads of their
// own beside layers that see all; values of another width than keys; DeepSeek-V3's
// experts.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

namespace parallm {

namespace {

/** One kind of layer's heads. `prefix`: of its fields' names. */
struct HeadSizes {
  HeadSizes(const Config& config, const std::string& prefix)
      : heads(config.count(prefix + "num_attention_heads")),
        kv_heads(config.count(prefix + "num_key_value_heads")),
        head_dim(config.count(prefix + "head_dim")),
        v_head_dim(config.count(prefix + "v_head_dim")) {
    if (heads % kv_heads != 0) {
      fail(
          Kind::invalid,
          "[{}] '{}num_attention_heads' must be a multiple of '{}num_key_value_heads'; got {} and {}",
          config.where,
          prefix,
          prefix,
          heads,
          kv_heads);
    }
  }

  int heads;
  int kv_heads;
  int head_dim;
  int v_head_dim;
};

class SinkAttention {
 public:
  SinkAttention(
      Weights& weights,
      const std::string& name,
      int dims,
      const HeadSizes& sizes,
      float value_scale,
      Attention how)
      : sizes_(sizes),
        value_scale_(value_scale),
        how_(std::move(how)),
        q_proj(weights, name + ".q_proj", sizes.heads * sizes.head_dim, dims),
        k_proj(weights, name + ".k_proj", sizes.kv_heads * sizes.head_dim, dims),
        v_proj(weights, name + ".v_proj", sizes.kv_heads * sizes.v_head_dim, dims),
        o_proj(weights, name + ".o_proj", dims, sizes.heads * sizes.v_head_dim) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    int count = x.shape(0);
    auto q = mx::reshape(q_proj(x), {count, sizes_.heads, sizes_.head_dim});
    auto k = mx::reshape(k_proj(x), {count, sizes_.kv_heads, sizes_.head_dim});
    auto v = mx::reshape(v_proj(x), {count, sizes_.kv_heads, sizes_.v_head_dim});
    v = value_scale_ == 1 ? v : scaled(v, value_scale_);
    return o_proj(mx::flatten(cache.attend(q, k, v, how_), 1, 2));
  }

 private:
  HeadSizes sizes_;
  float value_scale_;
  Attention how_;
  Linear q_proj;
  Linear k_proj;
  Linear v_proj;
  Linear o_proj;
};

/** 0 or 1 for each layer. */
std::vector<int> flags(const Config& config, const char* field, int layers) {
  auto out = config.integers(field);
  if (int(out.size()) != layers) {
    fail(Kind::invalid, "[{}] '{}' must hold {} numbers; got {}", config.where, field, layers, out.size());
  }
  return out;
}

} // namespace

std::unique_ptr<Model> make_mimo_v2_flash(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  require_off(config, "attention_bias");
  weights.ignore("model.mtp"); // they draft several tokens
  int dims = config.count("hidden_size"), layers = config.count("num_hidden_layers");
  float eps = config.number("layernorm_epsilon", 1e-5);
  HeadSizes full(config, ""), sliding(config, "swa_");
  auto slides = flags(config, "hybrid_layer_pattern", layers), sparse = flags(config, "moe_layer_freq", layers);
  int window = config.count("sliding_window_size", config.has("sliding_window") ? config.count("sliding_window") : 128);
  float value_scale = config.number("attention_value_scale", 1);

  auto model = usual_decoder(config, weights, dims, eps);
  auto* full_rope = model->keep(make_rope(config, full.head_dim));
  auto sliding_config = config;
  sliding_config.json["rope_theta"] = config.number("swa_rope_theta");
  auto* sliding_rope = model->keep(make_rope(sliding_config, sliding.head_dim));
  for (int i = 0; i < layers; ++i) {
    auto name = layer_name(i), part = name + ".self_attn";
    auto& sizes = slides[i] ? sliding : full;
    auto how = scaled_attention(sizes.head_dim, slides[i] ? sliding_rope : full_rope, slides[i] ? window : 0);
    if (config.boolean(slides[i] ? "add_swa_attention_sink_bias" : "add_full_attention_sink_bias", false)) {
      how.sinks = weights.take(part + ".attention_sink_bias", {sizes.heads}, mx::float32);
    }
    SinkAttention attend(weights, part, dims, sizes, value_scale, how);
    auto feed_forward = [&]() -> Decoder::Map {
      if (!sparse[i]) {
        return GatedMLP(weights, name + ".mlp", dims, config.count("intermediate_size"));
      }
      return deepseek_v3_moe(config, weights, name + ".mlp");
    }();
    model->add(
        pre_norm_block(weights, name, dims, eps, attend, feed_forward),
        {sizes.kv_heads, sizes.head_dim, sizes.v_head_dim, {}});
  }
  return model;
}

} // namespace parallm
