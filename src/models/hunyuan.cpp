// Hunyuan's dense models, 0.5B to 7B, and Hunyuan-MT (model_type hunyuan_v1_dense,
// arXiv 2509.05209): Llama's block with norms of q and k in each head, after RoPE;
// Hunyuan-Large (hunyuan, arXiv 2411.02265): some layers take the keys and values
// of the one before, and all have experts beside a shared one.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/step_rotation.h"
#include "nn/mlp.h"
#include "nn/moe.h"

#include <cmath>

namespace parallm {

namespace {

/** NTK-aware: the base grows by alpha, whatever the length. */
Rope alpha_rope(const Config& config, int head_dim) {
  double theta = config.number("rope_theta", 10000), alpha = 1;
  if (config.has("rope_scaling")) {
    auto options = config.object("rope_scaling");
    require_text(options, "type", "dynamic");
    alpha = options.number("alpha");
  }
  return plain_rope(head_dim, theta * std::pow(alpha, head_dim / (head_dim - 2.0)));
}

/** Keys and values of a step before RoPE, for the layers that take them over. */
using Taken = std::shared_ptr<std::optional<std::pair<mx::array, mx::array>>>;

/** As the norms' weights differ within RoPE's pairs, the layer rotates itself, and
 * the cache does not. */
class RotatedNormed {
 public:
  /** `own`: it has keys and values of its own, and leaves them in `taken`. */
  RotatedNormed(
      const Config& config,
      Weights& weights,
      const std::string& name,
      const Sizes& sizes,
      std::shared_ptr<StepRotation> rotation,
      bool own = true,
      Taken taken = {})
      : sizes_(sizes),
        rotate_(std::move(rotation)),
        taken_(std::move(taken)),
        how_(scaled_attention(sizes.head_dim, nullptr)),
        q_proj(weights, name + ".q_proj", sizes.num_attention_heads * sizes.head_dim, sizes.hidden_size, bias(config)),
        o_proj(weights, name + ".o_proj", sizes.hidden_size, sizes.num_attention_heads * sizes.head_dim, bias(config)) {
    int width = sizes.num_key_value_heads * sizes.head_dim;
    float eps = config.number("rms_norm_eps", 1e-5);
    if (own) {
      k_proj.emplace(weights, name + ".k_proj", width, sizes.hidden_size, bias(config));
      v_proj.emplace(weights, name + ".v_proj", width, sizes.hidden_size, bias(config));
    }
    if (config.boolean("use_qk_norm", true)) {
      query_layernorm.emplace(weights, name + ".query_layernorm", sizes.head_dim, eps);
      key_layernorm.emplace(weights, name + ".key_layernorm", sizes.head_dim, eps);
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto by_head = [&](const mx::array& y, int heads) { return mx::reshape(y, {x.shape(0), heads, sizes_.head_dim}); };
    auto normed = [&](const mx::array& y, const std::optional<RMSNorm>& norm) {
      return norm ? (*norm)((*rotate_)(y)) : (*rotate_)(y);
    };
    auto q = normed(by_head(q_proj(x), sizes_.num_attention_heads), query_layernorm);
    auto [k, v] = k_proj
        ? std::pair(
              by_head((*k_proj)(x), sizes_.num_key_value_heads), by_head((*v_proj)(x), sizes_.num_key_value_heads))
        : taken_->value();
    if (k_proj && taken_) {
      taken_->emplace(k, v);
    }
    return o_proj(mx::flatten(cache.attend(q, normed(k, key_layernorm), v, how_), 1, 2));
  }

 private:
  static bool bias(const Config& config) {
    return config.boolean("attention_bias", false);
  }

  Sizes sizes_;
  std::shared_ptr<StepRotation> rotate_;
  Taken taken_;
  Attention how_;
  Linear q_proj;
  Linear o_proj;
  std::optional<Linear> k_proj; // nothing: another layer's are taken
  std::optional<Linear> v_proj;
  std::optional<RMSNorm> query_layernorm;
  std::optional<RMSNorm> key_layernorm;
};

std::shared_ptr<StepRotation> add_rotation(Decoder& model, const Config& config, int head_dim) {
  auto rotation = std::make_shared<StepRotation>(alpha_rope(config, head_dim));
  model.embedded = [rotation](const mx::array& x, Caches& caches) {
    rotation->begin(caches.positions());
    return x;
  };
  return rotation;
}

/** A number for all layers, or a list with one for each. */
int of_layer(const Config& config, const char* field, int layer) {
  auto values = config.integers(field);
  if (values.empty() || (values.size() > 1 && layer >= int(values.size()))) {
    fail(Kind::invalid, "[{}] '{}' must be a number or one for each layer", config.where, field);
  }
  return values.size() == 1 ? values[0] : values[layer];
}

/** Tencent's q, k and v as one layer, by kv heads, and up and gate as one, up
 * first. */
void to_ours(Weights& weights, const std::string& layer, const Sizes& sizes, int experts) {
  auto attention = layer + ".self_attn.";
  if (auto all = weights.pull(attention + "qkv_proj.weight")) {
    int group = sizes.num_attention_heads / sizes.num_key_value_heads;
    auto by_head = mx::reshape(*all, {sizes.num_key_value_heads, group + 2, sizes.head_dim, -1});
    auto parts = mx::split(by_head, mx::Shape{group, group + 1}, 1);
    const char* names[] = {"q_proj", "k_proj", "v_proj"};
    for (int i = 0; i < 3; ++i) {
      weights.put(attention + names[i] + ".weight", mx::contiguous(mx::flatten(parts[i], 0, 2)));
    }
  }
  auto mlp = layer + ".mlp.";
  const auto split = [&](const std::string& block) {
    if (auto both = weights.pull(block + "gate_and_up_proj.weight")) {
      auto parts = mx::split(*both, 2, 0);
      weights.put(block + "up_proj.weight", mx::contiguous(parts[0]));
      weights.put(block + "gate_proj.weight", mx::contiguous(parts[1]));
    }
  };
  split(mlp);
  split(mlp + "shared_mlp.");
  for (int e = 0; e < experts; ++e) {
    split(fmt::format("{}experts.{}.", mlp, e));
  }
  stack_experts(weights, mlp + "experts", mlp + "switch_mlp", experts);
}

} // namespace

std::unique_ptr<Model> make_hunyuan_v1_dense(const Config& config, Weights& weights) {
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  auto act = activation(config.text("hidden_act", "silu"));
  auto model = usual_decoder(config, weights, dims, eps);
  auto rotation = add_rotation(*model, config, sizes.head_dim);
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    RotatedNormed attend(config, weights, name + ".self_attn", sizes, rotation);
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act);
    model->add(pre_norm_block(weights, name, dims, eps, attend, mlp), sizes.cache());
  }
  return model;
}

std::unique_ptr<Model> make_hunyuan(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"tie_word_embeddings", true}});
  require_text(config, "hidden_act", "silu");
  Sizes sizes(config);
  int dims = sizes.hidden_size, experts = config.count("num_experts");
  float eps = config.number("rms_norm_eps", 1e-5);
  int factor = config.boolean("use_cla", false) ? config.count("cla_share_factor") : 1;
  config.json["tie_word_embeddings"] = true; // mlx-lm's model is, whatever it says
  auto model = usual_decoder(config, weights, dims, eps);
  auto rotation = add_rotation(*model, config, sizes.head_dim);
  auto taken = std::make_shared<std::optional<std::pair<mx::array, mx::array>>>();
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i), mlp = name + ".mlp";
    to_ours(weights, name, sizes, experts);
    RotatedNormed attend(config, weights, name + ".self_attn", sizes, rotation, i % factor == 0, taken);
    auto feed_forward = [&]() -> Decoder::Map {
      if (experts == 1) {
        return GatedMLP(weights, mlp, dims, sizes.intermediate_size);
      }
      int hidden =
          config.has("moe_intermediate_size") ? of_layer(config, "moe_intermediate_size", i) : sizes.intermediate_size;
      int choices = of_layer(config, "moe_topk", i);
      auto choose = [choices](const mx::array& logits) { return choose_by_softmax(logits, choices, false); };
      SparseMoe routed(weights, mlp + ".gate.wg", mlp + ".switch_mlp", experts, dims, hidden, choose);
      if (!config.boolean("use_mixed_mlp_moe", false)) {
        return routed;
      }
      int width = sizes.intermediate_size * of_layer(config, "num_shared_expert", i);
      GatedMLP shared(weights, mlp + ".shared_mlp", dims, width);
      return [=](const mx::array& x) { return routed(x) + shared(x); };
    }();
    model->add(pre_norm_block(weights, name, dims, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
