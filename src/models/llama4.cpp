// Llama 4 (Meta's model card): chunks of attention with RoPE, and layers without
// either whose queries grow with their position; one expert a token beside a
// shared one. Also the text-only checkpoints of its shape without experts
// (llama4_text).
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/moe.h"

#include <algorithm>

namespace parallm {

namespace {

/** 1 where a layer rotates: `no_rope_layers`, whose name says the opposite, or
 * all but every fourth. */
std::vector<int> rotating_layers(const Config& config, int layers) {
  auto flags = config.integers("no_rope_layers");
  if (flags.empty()) {
    int interval = config.count("no_rope_layer_interval", 4);
    for (int i = 0; i < layers; ++i) {
      flags.push_back((i + 1) % interval != 0);
    }
  }
  if (int(flags.size()) != layers) {
    fail(Kind::invalid, "[{}] 'no_rope_layers' must hold {} numbers; got {}", config.where, layers, flags.size());
  }
  return flags;
}

/** On if absent, true or any number but 0. */
bool tunes_temperature(const Config& config) {
  auto* value = config.json.if_contains("attn_temperature_tuning");
  if (!value || value->is_null()) {
    return true;
  }
  return value->is_bool() ? value->get_bool() : config.integer("attn_temperature_tuning") != 0;
}

/** How much queries of layers without rotation grow (Nakanishi, arXiv
 * 2501.19399): [T,1,1] by a step's positions. */
struct Temperature {
  float floor_scale;
  float attn_scale;

  mx::array operator()(const mx::array& positions) const {
    auto position = mx::astype(positions, mx::float32) + mx::array(1.0f);
    auto log = mx::log(mx::floor(position / mx::array(floor_scale)) + mx::array(1.0f));
    return mx::reshape(log * mx::array(attn_scale) + mx::array(1.0f), {-1, 1, 1});
  }
};

class SelfAttention4 {
 public:
  /** `growth`: the step's, for layers that have one. */
  SelfAttention4(
      Weights& weights,
      const std::string& name,
      const Sizes& sizes,
      bool bias,
      std::optional<float> norm_eps,
      Attention how,
      std::shared_ptr<std::optional<mx::array>> growth)
      : norm_eps_(norm_eps),
        how_(std::move(how)),
        growth_(std::move(growth)),
        project_(weights, name, sizes, bias, bias) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project_(x);
    if (norm_eps_) { // a norm without weights is the same before rotation and after
      q = rms_norm(q, *norm_eps_);
      k = rms_norm(k, *norm_eps_);
    }
    if (growth_) {
      q = mx::astype(q * growth_->value(), q.dtype());
    }
    return project_.out(cache.attend(q, k, v, how_));
  }

 private:
  std::optional<float> norm_eps_;
  Attention how_;
  std::shared_ptr<std::optional<mx::array>> growth_;
  Projections project_;
};

/** The chosen expert's weight is on its input. */
class MoE {
 public:
  MoE(const Config& config, Weights& weights, const std::string& name, const Sizes& sizes)
      : router(weights, name + ".router", config.count("num_local_experts"), sizes.hidden_size),
        experts(
            weights,
            name + ".experts",
            config.count("num_local_experts"),
            sizes.hidden_size,
            sizes.intermediate_size),
        shared_expert(weights, name + ".shared_expert", sizes.hidden_size, sizes.intermediate_size) {}

  mx::array operator()(const mx::array& x) const {
    auto logits = router(x);
    auto chosen = top_experts(logits, 1);
    auto score = mx::sigmoid(mx::astype(mx::take_along_axis(logits, chosen, 1), mx::float32));
    auto rows = x * mx::astype(score, x.dtype());
    return experts(rows, {chosen, mx::ones_like(score)}) + shared_expert(x);
  }

 private:
  Linear router;
  SwitchGLU experts;
  GatedMLP shared_expert;
};

/** The layers that have experts: `moe_layers`, or one in every
 * `interleave_moe_layer_step`. */
bool is_sparse(const Config& config, int layer) {
  auto listed = config.integers("moe_layers");
  if (!listed.empty()) {
    return std::find(listed.begin(), listed.end(), layer) != listed.end();
  }
  int step = config.count("interleave_moe_layer_step", 1);
  return layer % step == step - 1;
}

void take_apart(Weights& weights, const std::string& experts) {
  split_gate_up(weights, experts + ".gate_up_proj", experts, true);
  transpose_experts(weights, experts + ".down_proj", experts + ".down_proj");
}

} // namespace

std::unique_ptr<Model> make_llama4(const Config& outer, Weights& weights) {
  auto config = outer.object("text_config");
  require_text(config, "hidden_act", "silu");
  if (int choices = config.count("num_experts_per_tok", 1); choices != 1) {
    fail(Kind::invalid, "[{}] 'num_experts_per_tok' must be 1; got {}", config.where, choices);
  }
  for (auto* prefix : {"vision_model.", "multi_modal_projector."}) {
    weights.ignore(prefix);
  }
  weights.rename("language_model.", "");
  Sizes sizes(config);
  bool bias = config.boolean("attention_bias", false);
  auto norm_eps = config.boolean("use_qk_norm", true) ? std::optional(1e-6f) : std::nullopt;
  auto rotates = rotating_layers(config, sizes.num_hidden_layers);
  int chunk = config.count("attention_chunk_size", 8192);
  float eps = config.number("rms_norm_eps", 1e-5);

  auto model = usual_decoder(config, weights, sizes.hidden_size, eps);
  std::shared_ptr<std::optional<mx::array>> growth;
  if (tunes_temperature(config)) {
    growth = std::make_shared<std::optional<mx::array>>();
    Temperature temperature{float(config.number("floor_scale", 8192)), float(config.number("attn_scale", 0.1))};
    model->embedded = [=](const mx::array& x, Caches& caches) {
      *growth = temperature(caches.positions());
      return x;
    };
  }
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 500000, .traditional = true}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto how = scaled_attention(sizes.head_dim, rotates[i] ? rope : nullptr);
    how.chunk = rotates[i] ? chunk : 0;
    SelfAttention4 attend(
        weights,
        name + ".self_attn",
        sizes,
        bias,
        rotates[i] ? norm_eps : std::nullopt,
        how,
        rotates[i] ? nullptr : growth);
    auto feed_forward = [&]() -> Decoder::Map {
      auto inner = name + ".feed_forward";
      if (!is_sparse(config, i)) {
        return GatedMLP(weights, inner, sizes.hidden_size, config.count("intermediate_size_mlp"));
      }
      take_apart(weights, inner + ".experts");
      return MoE(config, weights, inner, sizes);
    }();
    model->add(pre_norm_block(weights, name, sizes.hidden_size, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

std::unique_ptr<Model> make_llama4_text(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  weights.rename("output.", "lm_head.");
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-5);
  auto rotates = rotating_layers(config, sizes.num_hidden_layers);
  // Here the layers without rotation norm q and k too (mlx-lm's llama4_text.py).
  auto norm_eps = config.boolean("use_qk_norm", true) ? std::optional(eps) : std::nullopt;
  auto model = usual_decoder(config, weights, sizes.hidden_size, eps);
  auto* rope = model->keep(plain_rope(sizes.head_dim, config.number("rope_theta", 500000), true));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto how = scaled_attention(sizes.head_dim, rotates[i] ? rope : nullptr);
    SelfAttention4 attend(
        weights, name + ".self_attn", sizes, config.boolean("attention_bias", false), norm_eps, how, nullptr);
    GatedMLP mlp(weights, name + ".feed_forward", sizes.hidden_size, config.count("intermediate_size_mlp"));
    model->add(pre_norm_block(weights, name, sizes.hidden_size, eps, attend, mlp), sizes.cache());
  }
  return model;
}

} // namespace parallm
