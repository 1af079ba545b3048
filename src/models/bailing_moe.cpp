// Ling and Ring (arXiv 2503.05139, 2510.22115): q, k and v one layer, experts
// chosen by softmax or by biased sigmoids, beside shared ones; and Ring-linear
// (arXiv 2510.19338), most of whose layers forget at a fixed rate, a head's own,
// and its successor bailing_hybrid, the rest of whose layers have latent attention.
#include "base/error.h"
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"
#include "models/step_rotation.h"
#include "nn/mlp.h"
#include "nn/moe.h"
#include "nn/recurrent.h"

#include <cmath>
#include <limits>

namespace parallm {

std::unique_ptr<Model> make_bailing_moe_v3(const Config& config, Weights& weights); // bailing_moe_v3.cpp

namespace {

SparseMoe::Choose make_choice(const Config& config, Weights& weights, const std::string& moe, int experts) {
  auto score = config.text("score_function", "softmax");
  if (score != "softmax" && score != "sigmoid") {
    fail(Kind::invalid, "[{}] 'score_function' must be softmax or sigmoid; got '{}'", config.where, score);
  }
  std::optional<mx::array> bias;
  if (config.boolean("moe_router_enable_expert_bias", false)) {
    bias = weights.take(moe + ".gate.expert_bias", {experts}, mx::float32);
  }
  Selection how{
      .choices = config.count("num_experts_per_tok"),
      .groups = config.count("n_group", 1),
      .kept_groups = config.count("topk_group", 4),
      .outside = config.text("model_type") == "bailing_hybrid" ? -std::numeric_limits<float>::infinity() : 0,
      .normalize = config.boolean("norm_topk_prob", true),
      .scale = float(config.number("routed_scaling_factor", 1))};
  return [=, softmax = score == "softmax"](const mx::array& logits) {
    auto wide = mx::astype(logits, mx::float32);
    return choose_by_score(softmax ? mx::softmax(wide, -1, true) : mx::sigmoid(wide), bias, how);
  };
}

Decoder::Map make_moe(const Config& config, Weights& weights, const std::string& moe, int dims, bool bias) {
  int experts = config.count("num_experts"), hidden = config.count("moe_intermediate_size");
  stack_experts(weights, moe + ".experts", moe + ".switch_mlp", experts);
  weights.rename(moe + ".gate.weight", moe + ".gate.gate_proj.weight");
  weights.rename(moe + ".gate.bias", moe + ".gate.gate_proj.bias");
  auto choose = make_choice(config, weights, moe, experts);
  SparseMoe routed(weights, moe + ".gate.gate_proj", moe + ".switch_mlp", experts, dims, hidden, choose);
  int shared = config.integer("num_shared_experts", 0);
  if (shared == 0 || !config.boolean("moe_router_enable_shared_expert", true)) {
    return routed;
  }
  int width = config.count("moe_shared_expert_intermediate_size", hidden) * shared;
  GatedMLP all(weights, moe + ".shared_experts", dims, width, silu, bias);
  return [=](const mx::array& x) { return routed(x) + all(x); };
}

/** `norm_head`: each input's column of the output layer has length 1. */
void normalize_head(Weights& weights) {
  if (weights.has("lm_head.scales")) {
    return; // it was done before it was quantized
  }
  if (auto stored = weights.pull("lm_head.weight")) {
    auto wide = mx::astype(*stored, mx::float32);
    auto length = mx::sqrt(mx::sum(mx::square(wide), 0, true)) + mx::array(1e-7f);
    weights.put("lm_head.weight", mx::astype(wide / length, stored->dtype()));
  }
}

/** The whole model; `make_attention` gives a layer's, with what its cache keeps. */
struct Mixer {
  Decoder::Block attend;
  CacheSpec cache;
};
using MakeMixer = std::function<Mixer(int layer, const std::string& name)>;

std::unique_ptr<Decoder> begin(const Config& config, Weights& weights, const Sizes& sizes) {
  require_text(config, "hidden_act", "silu");
  require_off(config, "norm_softmax");
  if (config.boolean("norm_head", false)) {
    normalize_head(weights);
  }
  auto model = std::make_unique<Decoder>(weights, "model.word_embeddings", sizes);
  model->norm = RMSNorm(weights, "model.norm", sizes.hidden_size, config.number("rms_norm_eps", 1e-6));
  model->head = untied_head(config, weights, sizes.vocab_size, sizes.hidden_size);
  return model;
}

void fill(Decoder& model, const Config& config, Weights& weights, const Sizes& sizes, const MakeMixer& make_mixer) {
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  bool bias = config.boolean("use_bias", false);
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto [attend, cache] = make_mixer(i, name + ".attention");
    auto feed_forward = [&]() -> Decoder::Map {
      if (!config.has("num_experts") || i < config.integer("first_k_dense_replace")) {
        return GatedMLP(weights, name + ".mlp", dims, sizes.intermediate_size, silu, bias);
      }
      return make_moe(config, weights, name + ".mlp", dims, bias);
    }();
    model.add(pre_norm_block(weights, name, dims, eps, attend, feed_forward), cache);
  }
}

FusedProjections make_projections(const Config& config, Weights& weights, const std::string& name, const Sizes& sizes) {
  return FusedProjections(
      weights,
      name,
      sizes,
      config.boolean("use_qkv_bias", false),
      config.boolean("use_bias", false),
      {.o = "dense", .qkv = "query_key_value"});
}

/** Softmax attention, with norms of q and k in each head where `use_qk_norm`. */
Mixer make_attention(
    const Config& config,
    Weights& weights,
    const std::string& name,
    const Sizes& sizes,
    const Rope* rope) {
  auto project = make_projections(config, weights, name, sizes);
  auto how = scaled_attention(sizes.head_dim, rope);
  if (!config.boolean("use_qk_norm", false)) {
    return {SelfAttention(project, how), sizes.cache()};
  }
  float eps = config.number("rms_norm_eps", 1e-6);
  RMSNorm q_norm(weights, name + ".query_layernorm", sizes.head_dim, eps);
  RMSNorm k_norm(weights, name + ".key_layernorm", sizes.head_dim, eps);
  return {NormedAttention(project, q_norm, k_norm, how), sizes.cache()};
}

/** log of what each head keeps of its state a token: ALiBi's slopes (arXiv
 * 2108.12409), less in later layers, which are `step` of `layers`. */
std::vector<float> log_decays(int heads, int step, int layers) {
  const auto slopes = [](int count) {
    std::vector<double> out;
    for (int i = 1; i <= count; ++i) {
      out.push_back(std::pow(2.0, -8.0 * i / count));
    }
    return out;
  };
  int power = 1;
  while (power * 2 <= heads) {
    power *= 2;
  }
  auto all = slopes(power), between = slopes(2 * power);
  for (int i = 0; int(all.size()) < heads; i += 2) {
    all.push_back(between[i]);
  }
  double factor = 1 - double(step) / std::max(1, layers - 1) + 1e-5;
  std::vector<float> out;
  for (auto slope : all) {
    out.push_back(-slope * factor);
  }
  return out;
}

class LinearAttention {
 public:
  LinearAttention(
      const Config& config,
      Weights& weights,
      const std::string& name,
      const Sizes& sizes,
      int step,
      std::shared_ptr<StepRotation> rotation)
      : sizes_(sizes),
        eps_(config.number("rms_norm_eps", 1e-6)),
        groups_(config.count("group_norm_size")),
        rotate_(std::move(rotation)),
        project_(make_projections(config, weights, name, sizes)),
        g_proj(weights, name + ".g_proj", width(), sizes.hidden_size),
        g_norm(weights.take(name + ".g_norm.weight", {width()}, weights.dtype())),
        log_decay_([&] {
          auto decays = log_decays(sizes.num_attention_heads, step, sizes.num_hidden_layers);
          return mx::array(decays.data(), {1, sizes.num_attention_heads});
        }()) {
    if (config.boolean("use_qk_norm", false)) {
      query_layernorm.emplace(weights, name + ".query_layernorm", sizes.head_dim, eps_);
      key_layernorm.emplace(weights, name + ".key_layernorm", sizes.head_dim, eps_);
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project_(x);
    q = scaled((*rotate_)(query_layernorm ? (*query_layernorm)(q) : q), 1 / std::sqrt(float(sizes_.head_dim)));
    k = (*rotate_)(key_layernorm ? (*key_layernorm)(k) : k);
    auto decay = mx::broadcast_to(log_decay_, {x.shape(0), sizes_.num_attention_heads});
    auto y = cache.recur({q, k, v, decay}, [](auto& in, auto& states) {
      return linear_recurrence({.q = in[0], .k = in[1], .v = in[2], .log_decay = in[3]}, states[0]);
    });
    auto grouped = rms_norm(mx::reshape(y, {x.shape(0), groups_, -1}), eps_);
    auto normed = g_norm * mx::flatten(grouped, 1, 2);
    auto gated = normed * mx::sigmoid(g_proj(x));
    return project_.out(mx::reshape(gated, y.shape()));
  }

  static CacheSpec cache_spec(const Sizes& sizes) {
    return {.states = {{{sizes.num_attention_heads, sizes.head_dim, sizes.head_dim}, mx::float32}}};
  }

 private:
  int width() const {
    return sizes_.num_attention_heads * sizes_.head_dim;
  }

  Sizes sizes_;
  float eps_;
  int groups_; // of the norm
  std::shared_ptr<StepRotation> rotate_;
  FusedProjections project_;
  Linear g_proj; // the output's gate
  mx::array g_norm; // [width]
  mx::array log_decay_; // [1,heads]
  std::optional<RMSNorm> query_layernorm;
  std::optional<RMSNorm> key_layernorm;
};

/** The last of each group of layers, and those left over, are not. */
bool is_linear(const Config& config, int layer) {
  int group = config.count("layer_group_size"), layers = config.count("num_hidden_layers");
  return (layer + 1) % group != 0 && layer < layers / group * group;
}

std::shared_ptr<StepRotation> add_rotation(Decoder& model, const Rope& rope) {
  auto rotation = std::make_shared<StepRotation>(rope);
  model.embedded = [rotation](const mx::array& x, Caches& caches) {
    rotation->begin(caches.positions());
    return x;
  };
  return rotation;
}

} // namespace

std::unique_ptr<Model> make_bailing_moe(const Config& config, Weights& weights) {
  Sizes sizes(config);
  auto positions = config;
  if (config.has("rotary_dim")) {
    positions.json["partial_rotary_factor"] = double(config.count("rotary_dim")) / sizes.head_dim;
  }
  auto model = begin(config, weights, sizes);
  auto* rope = model->keep(make_rope(positions, sizes.head_dim));
  fill(*model, config, weights, sizes, [&](int, const std::string& name) {
    return make_attention(config, weights, name, sizes, rope);
  });
  return model;
}

std::unique_ptr<Model> make_bailing_moe_linear(const Config& config, Weights& weights) {
  Sizes sizes(config);
  auto linear = sizes; // its layers have no kv heads of their own, and share hidden_size
  linear.num_key_value_heads = sizes.num_attention_heads;
  linear.head_dim = sizes.hidden_size / sizes.num_attention_heads;
  auto model = begin(config, weights, sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  auto rotation = add_rotation(*model, make_rope(config, linear.head_dim));
  fill(*model, config, weights, sizes, [&](int layer, const std::string& name) -> Mixer {
    if (!is_linear(config, layer)) {
      return make_attention(config, weights, name, sizes, rope);
    }
    return {
        LinearAttention(config, weights, name, linear, std::max(0, layer - 1), rotation),
        LinearAttention::cache_spec(linear)};
  });
  return model;
}

std::unique_ptr<Model> make_bailing_hybrid(const Config& given, Weights& weights) {
  if (given.has("architectures")) {
    for (auto& name : given.texts("architectures")) {
      if (name == "BailingMoeV3ForCausalLM") { // another model of the same model_type
        return make_bailing_moe_v3(given, weights);
      }
    }
  }
  auto config = with_defaults(
      given,
      {{"partial_rotary_factor", 0.5},
       {"use_qk_norm", true},
       {"score_function", "sigmoid"},
       {"moe_router_enable_expert_bias", true}});
  if (config.has("moe_shared_expert_intermediate_size")) { // here of all together
    config.json["num_shared_experts"] = std::min(config.integer("num_shared_experts"), 1);
  }
  config.json["attention_bias"] = config.boolean("use_qkv_bias", false);
  Sizes sizes(config);
  ignore_layers_from(weights, sizes.num_hidden_layers, config.integer("num_nextn_predict_layers", 1));
  auto linear = sizes;
  linear.num_key_value_heads = sizes.num_attention_heads;
  LatentArgs latent(config);
  latent.norm_eps = config.number("rms_norm_eps", 1e-6);
  latent.output = "dense";

  auto model = begin(config, weights, sizes);
  auto positions = config;
  positions.json["partial_rotary_factor"] = 1.0; // of what latent attention rotates
  bool pairs = config.boolean("rope_interleave", true);
  auto* rope = model->keep(make_rope(positions, latent.qk_rope_head_dim, {.traditional = pairs}));
  auto rotation = add_rotation(*model, make_rope(config, linear.head_dim));
  fill(*model, config, weights, sizes, [&](int layer, const std::string& name) -> Mixer {
    if (is_linear(config, layer)) {
      return {LinearAttention(config, weights, name, linear, layer, rotation), LinearAttention::cache_spec(linear)};
    }
    split_kv_b(weights, name, latent, true);
    return {LatentAttention(weights, name, latent, rope), latent.cache()};
  });
  return model;
}

} // namespace parallm
