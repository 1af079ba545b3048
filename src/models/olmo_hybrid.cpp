// OLMo Hybrid (Ai2): three layers of Gated DeltaNet (arXiv 2412.06464), whose q, k
// and v are convolved apart, to one of OLMo 3's attention.
#include "base/error.h"
#include "models/gated_delta_net.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <cmath>

namespace parallm {

namespace {

struct DeltaShape {
  explicit DeltaShape(const Config& config)
      : hidden(config.count("hidden_size")),
        key_heads(config.count("linear_num_key_heads")),
        value_heads(config.count("linear_num_value_heads")),
        key_dim(config.count("linear_key_head_dim")),
        value_dim(config.count("linear_value_head_dim")),
        kernel(config.count("linear_conv_kernel_dim")),
        most_beta(config.boolean("linear_allow_neg_eigval", false) ? 2 : 1),
        eps(config.number("layer_norm_epsilon", 1e-5)) {
    if (value_heads % key_heads != 0) {
      fail(Kind::invalid, "[{}] 'linear_num_value_heads' must be a multiple of 'linear_num_key_heads'", config.where);
    }
  }

  int hidden;
  int key_heads;
  int value_heads;
  int key_dim;
  int value_dim;
  int kernel;
  float most_beta; // 2: the state may also flip
  float eps;

  int keys() const {
    return key_heads * key_dim;
  }
  int values() const {
    return value_heads * value_dim;
  }
};

class DeltaNet {
 public:
  DeltaNet(const DeltaShape& shape, Weights& weights, const std::string& name)
      : shape_(shape),
        q_proj(weights, name + ".q_proj", shape.keys(), shape.hidden),
        k_proj(weights, name + ".k_proj", shape.keys(), shape.hidden),
        v_proj(weights, name + ".v_proj", shape.values(), shape.hidden),
        a_proj(weights, name + ".a_proj", shape.value_heads, shape.hidden),
        b_proj(weights, name + ".b_proj", shape.value_heads, shape.hidden),
        g_proj(weights, name + ".g_proj", shape.values(), shape.hidden),
        q_conv1d(weights, name + ".q_conv1d", shape.keys(), shape.kernel, false, true),
        k_conv1d(weights, name + ".k_conv1d", shape.keys(), shape.kernel, false, true),
        v_conv1d(weights, name + ".v_conv1d", shape.values(), shape.kernel, false, true),
        dt_bias(weights.take(name + ".dt_bias", {shape.value_heads}, mx::float32)),
        a_(mx::negative(mx::exp(weights.take(name + ".A_log", {shape.value_heads}, mx::float32)))),
        o_norm(weights, name + ".o_norm", shape.value_dim, shape.eps),
        o_proj(weights, name + ".o_proj", shape.hidden, shape.values()) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto log_decay = a_ * softplus(mx::astype(a_proj(x), mx::float32) + dt_bias);
    auto beta = mx::sigmoid(mx::astype(b_proj(x), mx::float32)) * mx::array(shape_.most_beta);
    auto out = cache.recur({q_proj(x), k_proj(x), v_proj(x), log_decay, beta}, [&](auto& in, auto& states) {
      int rows = in[0].shape(0), length = in[0].shape(1);
      mx::Shape keys{rows, length, shape_.key_heads, shape_.key_dim};
      mx::Shape values{rows, length, shape_.value_heads, shape_.value_dim};
      LinearRecurrence recurrence{
          .q = unit_length(mx::reshape(q_conv1d(in[0], states[0]), keys), 1 / std::sqrt(float(shape_.key_dim))),
          .k = unit_length(mx::reshape(k_conv1d(in[1], states[1]), keys), 1),
          .v = mx::reshape(v_conv1d(in[2], states[2]), values),
          .log_decay = in[3],
          .beta = in[4],
          .delta = true};
      return linear_recurrence(recurrence, states[3]);
    });
    auto gate = mx::reshape(g_proj(x), out.shape());
    return o_proj(mx::flatten(swiglu(gate, o_norm(out)), 1, 2));
  }

  static CacheSpec cache_spec(const DeltaShape& shape, mx::Dtype dtype) {
    StateSpec keys{{shape.kernel - 1, shape.keys()}, dtype}, values{{shape.kernel - 1, shape.values()}, dtype};
    return {.states = {keys, keys, values, {{shape.value_heads, shape.value_dim, shape.key_dim}, mx::float32}}};
  }

 private:
  DeltaShape shape_;
  Linear q_proj;
  Linear k_proj;
  Linear v_proj;
  Linear a_proj; // the decay
  Linear b_proj; // beta: how much of an error is corrected
  Linear g_proj; // the output's gate
  CausalConv q_conv1d;
  CausalConv k_conv1d;
  CausalConv v_conv1d;
  mx::array dt_bias; // [value_heads]
  mx::array a_; // [value_heads] -exp(A_log)
  RMSNorm o_norm;
  Linear o_proj;
};

/** `layer_types`, or each fourth layer. */
std::vector<bool> attention_layers(const Config& config, int layers) {
  std::vector<bool> attends(layers);
  if (!config.has("layer_types")) {
    for (int i = 3; i < layers; i += 4) {
      attends[i] = true;
    }
    return attends;
  }
  auto types = config.texts("layer_types");
  if (int(types.size()) != layers) {
    fail(Kind::invalid, "[{}] 'layer_types' must name {} layers; got {}", config.where, layers, types.size());
  }
  for (int i = 0; i < layers; ++i) {
    attends[i] = types[i] == "full_attention";
    if (!attends[i] && types[i] != "linear_attention") {
      fail(
          Kind::invalid,
          "[{}] 'layer_types' may hold full_attention and linear_attention; got '{}'",
          config.where,
          types[i]);
    }
  }
  return attends;
}

/** `rope_theta` null, in either place, says that nothing is rotated. */
bool rotates(const Config& config) {
  if (config.has("rope_parameters")) {
    auto options = config.object("rope_parameters");
    return options.has("rope_theta") || !options.json.contains("rope_theta");
  }
  return config.has("rope_theta") || !config.json.contains("rope_theta");
}

} // namespace

std::unique_ptr<Model> make_olmo_hybrid(const Config& config, Weights& weights) {
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  attention.bias = attention.output_bias = config.boolean("attention_bias", false);
  attention.norms = HeadNorms::all_heads;
  attention.norm_eps = config.number("rms_norm_eps", 1e-6);
  int dims = sizes.hidden_size;
  float eps = attention.norm_eps;
  auto act = activation(config.text("hidden_act", "silu"));
  DeltaShape delta(config);
  auto attends = attention_layers(config, sizes.num_hidden_layers);

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = rotates(config) ? model->keep(make_rope(config, sizes.head_dim)) : nullptr;
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act);
    if (!attends[i]) {
      DeltaNet net(delta, weights, name + ".linear_attn");
      model->add(pre_norm_block(weights, name, dims, eps, net, mlp), DeltaNet::cache_spec(delta, weights.dtype()));
      continue;
    }
    GroupedAttention attend(weights, name + ".self_attn", attention, scaled_attention(sizes.head_dim, rope));
    RMSNorm after_attention(weights, name + ".post_attention_layernorm", dims, eps);
    RMSNorm after_mlp(weights, name + ".post_feedforward_layernorm", dims, eps);
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = x + after_attention(attend(x, cache));
          return h + after_mlp(mlp(h));
        },
        sizes.cache());
  }
  return model;
}

} // namespace parallm
