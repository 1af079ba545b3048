// Kimi Linear (arXiv 2510.26692): three layers of Kimi Delta Attention, a delta
// rule that forgets each key's dim at its own rate, to one of latent attention
// without positions; DeepSeek-V3's experts.
#include "base/error.h"
#include "models/gated_delta_net.h"
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/shared_experts.h"

#include <algorithm>
#include <cmath>

namespace parallm {

namespace {

struct DeltaShape {
  explicit DeltaShape(const Config& config)
      : hidden(config.count("hidden_size")),
        heads(config.object("linear_attn_config").count("num_heads")),
        head_dim(config.object("linear_attn_config").count("head_dim")),
        kernel(config.object("linear_attn_config").count("short_conv_kernel_size", 4)),
        eps(config.number("rms_norm_eps", 1e-5)) {}

  int hidden;
  int heads;
  int head_dim;
  int kernel;
  float eps;

  int width() const {
    return heads * head_dim;
  }
};

class DeltaAttention {
 public:
  DeltaAttention(const DeltaShape& shape, Weights& weights, const std::string& name)
      : shape_(shape),
        q_proj(weights, name + ".q_proj", shape.width(), shape.hidden),
        k_proj(weights, name + ".k_proj", shape.width(), shape.hidden),
        v_proj(weights, name + ".v_proj", shape.width(), shape.hidden),
        q_conv(weights, name + ".q_conv.conv", shape.width(), shape.kernel, false, true),
        k_conv(weights, name + ".k_conv.conv", shape.width(), shape.kernel, false, true),
        v_conv(weights, name + ".v_conv.conv", shape.width(), shape.kernel, false, true),
        f_a_proj(weights, name + ".f_a_proj", shape.head_dim, shape.hidden),
        f_b_proj(weights, name + ".f_b_proj", shape.width(), shape.head_dim),
        b_proj(weights, name + ".b_proj", shape.heads, shape.hidden),
        g_a_proj(weights, name + ".g_a_proj", shape.head_dim, shape.hidden),
        g_b_proj(weights, name + ".g_b_proj", shape.width(), shape.head_dim),
        a_(mx::negative(mx::exp(weights.take(name + ".A_log", {1, 1, shape.heads, 1}, mx::float32)))),
        dt_bias(weights.take(name + ".dt_bias", {shape.width()}, mx::float32)),
        o_norm(weights, name + ".o_norm", shape.head_dim, shape.eps),
        o_proj(weights, name + ".o_proj", shape.hidden, shape.width()) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    int count = x.shape(0);
    auto decay = softplus(mx::astype(f_b_proj(f_a_proj(x)), mx::float32) + dt_bias);
    auto log_decay = mx::reshape(a_, {1, shape_.heads, 1}) * by_head(decay);
    auto beta = mx::sigmoid(mx::astype(b_proj(x), mx::float32));
    auto out = cache.recur({q_proj(x), k_proj(x), v_proj(x), log_decay, beta}, [&](auto& in, auto& states) {
      mx::Shape heads{in[0].shape(0), in[0].shape(1), shape_.heads, shape_.head_dim};
      LinearRecurrence recurrence{
          .q = unit_length(mx::reshape(q_conv(in[0], states[0]), heads), 1 / std::sqrt(float(shape_.head_dim))),
          .k = unit_length(mx::reshape(k_conv(in[1], states[1]), heads), 1),
          .v = mx::reshape(v_conv(in[2], states[2]), heads),
          .log_decay = in[3],
          .beta = in[4],
          .delta = true};
      return linear_recurrence(recurrence, states[3]);
    });
    auto gate = mx::sigmoid(by_head(g_b_proj(g_a_proj(x))));
    return o_proj(mx::reshape(o_norm(out) * gate, {count, shape_.width()}));
  }

  static CacheSpec cache_spec(const DeltaShape& shape, mx::Dtype dtype) {
    StateSpec conv{{shape.kernel - 1, shape.width()}, dtype};
    return {.states = {conv, conv, conv, {{shape.heads, shape.head_dim, shape.head_dim}, mx::float32}}};
  }

 private:
  mx::array by_head(const mx::array& x) const {
    return mx::reshape(x, {x.shape(0), shape_.heads, shape_.head_dim});
  }

  DeltaShape shape_;
  Linear q_proj;
  Linear k_proj;
  Linear v_proj;
  CausalConv q_conv;
  CausalConv k_conv;
  CausalConv v_conv;
  Linear f_a_proj; // the decays, through a narrow layer
  Linear f_b_proj;
  Linear b_proj; // beta: how much of an error is corrected
  Linear g_a_proj; // the output's gate
  Linear g_b_proj;
  mx::array a_; // [1,1,heads,1] -exp(A_log)
  mx::array dt_bias; // [width]
  RMSNorm o_norm;
  Linear o_proj;
};

/** Hugging Face's names and shapes to mlx-lm's. */
void to_ours(Weights& weights, const std::string& layer, int experts) {
  auto moe = layer + ".block_sparse_moe", attention = layer + ".self_attn";
  stack_experts(weights, moe + ".experts", layer + ".mlp.switch_mlp", experts, numbered_projections);
  weights.rename(moe + ".shared_experts.", layer + ".mlp.shared_experts.");
  weights.rename(moe + ".gate.e_score_correction_bias", layer + ".mlp.e_score_correction_bias");
  weights.rename(moe + ".gate.", layer + ".mlp.gate.");
  for (std::string part : {"q", "k", "v"}) {
    weights.rename(attention + "." + part + "_conv1d.", attention + "." + part + "_conv.conv.");
  }
  if (auto stored = weights.pull(attention + ".dt_bias")) {
    weights.put(attention + ".dt_bias", mx::flatten(*stored));
  }
}

/** DeepSeek's names for the fields that its parts read. */
Config with_deepseek_names(const Config& given) {
  auto config = with_names(
      given,
      {{"n_routed_experts", "num_experts"},
       {"n_shared_experts", "num_shared_experts"},
       {"num_experts_per_tok", "num_experts_per_token"},
       {"norm_topk_prob", "moe_renormalize"},
       {"n_group", "num_expert_group"},
       {"scoring_func", "moe_router_activation_func"},
       {"qk_nope_head_dim", "head_dim"},
       {"v_head_dim", "head_dim"}});
  config.json.erase("rope_scaling"); // there is no rotation
  return config;
}

} // namespace

std::unique_ptr<Model> make_kimi_linear(const Config& given, Weights& weights) {
  auto config = with_deepseek_names(given);
  require_text(config, "hidden_act", "silu");
  if (!config.boolean("mla_use_nope", true)) {
    fail(Kind::invalid, "[{}] 'mla_use_nope' must be true; got false", config.where);
  }
  weights.ignore("model.mtp");
  LatentArgs attention(config);
  attention.norm_eps = config.number("rms_norm_eps", 1e-5);
  DeltaShape delta(config);
  auto linear = config.object("linear_attn_config").integers("kda_layers"); // counted from 1
  int dims = attention.hidden_size;

  auto model = usual_decoder(config, weights, dims, attention.norm_eps);
  for (int i = 0; i < config.count("num_hidden_layers"); ++i) {
    auto name = layer_name(i), part = name + ".self_attn";
    to_ours(weights, name, config.count("num_experts"));
    bool is_linear = std::find(linear.begin(), linear.end(), i + 1) != linear.end();
    auto attend = [&]() -> Decoder::Block {
      if (is_linear) {
        return DeltaAttention(delta, weights, part);
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
        is_linear ? DeltaAttention::cache_spec(delta, weights.dtype()) : attention.cache());
  }
  return model;
}

} // namespace parallm
