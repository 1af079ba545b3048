// Gemma 4 (Google's model card), also the text part of the model that sees and
// hears: norms around both halves of a block; layers that see all have larger
// heads and rotate a part of them; the last ones may share keys with earlier ones;
// in the large model experts beside the feed-forward part, in the small ones
// embeddings for each layer.
#include "base/error.h"
#include "models/attention.h"
#include "models/per_layer_inputs.h"
#include "models/rope_scaling.h"
#include "models/shared_kv.h"
#include "models/text_part.h"
#include "nn/mlp.h"
#include "nn/moe.h"

#include <cmath>

namespace parallm {

namespace {

/** What config.json leaves to transformers' Gemma4TextConfig. */
const boost::json::object defaults = {
    {"hidden_size", 1536},
    {"num_hidden_layers", 35},
    {"intermediate_size", 6144},
    {"num_attention_heads", 8},
    {"num_key_value_heads", 1},
    {"head_dim", 256},
    {"vocab_size", 262144},
    {"vocab_size_per_layer_input", 262144},
    {"sliding_window", 512},
    {"rope_parameters",
     {{"full_attention", {{"rope_type", "proportional"}, {"partial_rotary_factor", 0.25}, {"rope_theta", 1000000.0}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 10000.0}}}}}};

/** Fields whose null says "none", which isn't what silence says. */
bool is_null(const Config& config, const char* field) {
  return config.json.contains(field) && !config.has(field);
}

struct Gemma4Args : Sizes {
  explicit Gemma4Args(const Config& config)
      : Sizes(config),
        eps(config.number("rms_norm_eps", 1e-6)),
        global_head_dim(is_null(config, "global_head_dim") ? head_dim : config.count("global_head_dim", 512)),
        global_kv_heads(config.count("num_global_key_value_heads", num_key_value_heads)),
        first_shared(num_hidden_layers - config.integer("num_kv_shared_layers", 20)),
        k_eq_v(config.boolean("attention_k_eq_v", false)),
        double_wide(config.boolean("use_double_wide_mlp", true)),
        windows(layer_windows(config, num_hidden_layers, config.count("sliding_window_pattern", 5))),
        act(activation(config.text("hidden_activation", "gelu_pytorch_tanh"))) {
    if (first_shared < 1) {
      fail(Kind::invalid, "[{}] 'num_kv_shared_layers' must leave a layer with keys", config.where);
    }
  }

  float eps;
  int global_head_dim;
  int global_kv_heads; // where keys are values
  int first_shared; // layers from it on have no keys of their own
  bool k_eq_v; // in layers that see all
  bool double_wide; // the feed-forward part of layers that share
  std::vector<int> windows;
  Activation act;

  bool shares(int layer) const {
    return layer >= first_shared;
  }
  int heads_dim(int layer) const {
    return windows[layer] > 0 ? head_dim : global_head_dim;
  }
  bool keys_are_values(int layer) const {
    return k_eq_v && windows[layer] == 0;
  }
  int kv_heads(int layer) const {
    return keys_are_values(layer) ? global_kv_heads : num_key_value_heads;
  }
};

class Gemma4Attention {
 public:
  Gemma4Attention(
      const Gemma4Args& args,
      Weights& weights,
      const std::string& name,
      int layer,
      const Rope* rope,
      std::shared_ptr<SharedKV> shared)
      : heads_(args.num_attention_heads),
        kv_heads_(args.kv_heads(layer)),
        head_dim_(args.heads_dim(layer)),
        eps_(args.eps),
        how_{.scale = 1, .rope = rope, .window = args.windows[layer], .sinks = {}},
        shared_(std::move(shared)),
        q_proj(weights, name + ".q_proj", heads_ * head_dim_, args.hidden_size),
        o_proj(weights, name + ".o_proj", args.hidden_size, heads_ * head_dim_),
        q_norm(weights, name + ".q_norm", head_dim_, eps_) {
    if (args.shares(layer)) {
      for (auto* unused : {".k_proj.", ".v_proj.", ".k_norm."}) {
        weights.ignore(name + unused);
      }
      return;
    }
    k_proj.emplace(weights, name + ".k_proj", kv_heads_ * head_dim_, args.hidden_size);
    k_norm.emplace(weights, name + ".k_norm", head_dim_, eps_);
    if (!args.keys_are_values(layer)) {
      v_proj.emplace(weights, name + ".v_proj", kv_heads_ * head_dim_, args.hidden_size);
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    int count = x.shape(0);
    auto q = q_norm(mx::reshape(q_proj(x), {count, heads_, head_dim_}));
    if (!k_proj) {
      return o_proj(mx::flatten(shared_->attend(q, how_), 1, 2));
    }
    mx::Shape shape{count, kv_heads_, head_dim_};
    auto k = mx::reshape((*k_proj)(x), shape);
    auto v = rms_norm(v_proj ? mx::reshape((*v_proj)(x), shape) : k, eps_);
    return o_proj(mx::flatten(shared_->attend(q, (*k_norm)(k), v, cache, how_), 1, 2));
  }

 private:
  int heads_;
  int kv_heads_;
  int head_dim_;
  float eps_;
  Attention how_;
  std::shared_ptr<SharedKV> shared_;
  Linear q_proj;
  Linear o_proj;
  RMSNorm q_norm;
  std::optional<Linear> k_proj; // nothing: the layer shares
  std::optional<Linear> v_proj; // nothing: the keys are the values
  std::optional<RMSNorm> k_norm;
};

/** The feed-forward part and the experts, side by side, each with its norms. */
class SparseBlock {
 public:
  SparseBlock(const Config& config, const Gemma4Args& args, Weights& weights, const std::string& name, GatedMLP mlp)
      : choices_(config.count("top_k_experts")),
        eps_(args.eps),
        mlp_(std::move(mlp)),
        proj(weights, name + ".router.proj", config.count("num_experts"), args.hidden_size),
        scale_(weights.take(name + ".router.scale", {args.hidden_size}, weights.dtype())),
        per_expert_scale(weights.take(name + ".router.per_expert_scale", {config.count("num_experts")}, mx::float32)),
        experts([&] {
          split_gate_up(weights, name + ".experts.gate_up_proj", name + ".experts.switch_glu", false);
          weights.rename(name + ".experts.down_proj", name + ".experts.switch_glu.down_proj.weight");
          return SwitchGLU(
              weights,
              name + ".experts.switch_glu",
              config.count("num_experts"),
              args.hidden_size,
              config.count("moe_intermediate_size"),
              [](const mx::array& gate, const mx::array& up) { return gated(gelu_tanh, gate, up); });
        }()),
        pre_feedforward_layernorm(weights, name + ".pre_feedforward_layernorm", args.hidden_size, eps_),
        pre_feedforward_layernorm_2(weights, name + ".pre_feedforward_layernorm_2", args.hidden_size, eps_),
        post_feedforward_layernorm_1(weights, name + ".post_feedforward_layernorm_1", args.hidden_size, eps_),
        post_feedforward_layernorm_2(weights, name + ".post_feedforward_layernorm_2", args.hidden_size, eps_) {}

  mx::array operator()(const mx::array& h) const {
    auto dense = post_feedforward_layernorm_1(mlp_(pre_feedforward_layernorm(h)));
    auto routed = experts(pre_feedforward_layernorm_2(h), choose(h));
    return dense + post_feedforward_layernorm_2(routed);
  }

 private:
  Choice choose(const mx::array& h) const {
    auto normed = rms_norm(h, eps_) * scaled(scale_, 1 / std::sqrt(float(h.shape(1))));
    auto choice = choose_then_softmax(proj(normed), choices_);
    return {choice.experts, choice.weights * mx::take(per_expert_scale, choice.experts, 0)};
  }

  int choices_;
  float eps_;
  GatedMLP mlp_;
  Linear proj;
  mx::array scale_; // [hidden_size]
  mx::array per_expert_scale; // [experts]
  SwitchGLU experts;
  RMSNorm pre_feedforward_layernorm;
  RMSNorm pre_feedforward_layernorm_2;
  RMSNorm post_feedforward_layernorm_1;
  RMSNorm post_feedforward_layernorm_2;
};

Decoder::Map
make_feed_forward(const Config& config, const Gemma4Args& args, Weights& weights, const std::string& name, int layer) {
  int hidden = args.intermediate_size * (args.double_wide && args.shares(layer) ? 2 : 1);
  GatedMLP mlp(weights, name + ".mlp", args.hidden_size, hidden, args.act);
  if (config.boolean("enable_moe_block", false)) {
    return SparseBlock(config, args, weights, name, mlp);
  }
  RMSNorm before(weights, name + ".pre_feedforward_layernorm", args.hidden_size, args.eps);
  return [=](const mx::array& h) { return mlp(before(h)); };
}

/** Ranges of activations, kept by some repositories; mlx-lm has no use for them either. */
void drop_ranges(Weights& weights) {
  for (auto* suffix : {"input_max", "input_min", "output_max", "output_min"}) {
    for (auto& name : weights.names_ending(suffix)) {
      weights.pull(name);
    }
  }
}

} // namespace

std::unique_ptr<Model> make_gemma4_text(const Config& given, Weights& weights) {
  auto config = with_defaults(given, defaults);
  Gemma4Args args(config);
  int dims = args.hidden_size;
  drop_ranges(weights);
  auto model = std::make_unique<PerLayerDecoder>(weights, "model.embed_tokens", args);
  auto* full = model->keep(make_rope(config, args.global_head_dim, {.layer_type = "full_attention"}));
  auto* sliding = model->keep(make_rope(config, args.head_dim, {.layer_type = "sliding_attention"}));
  auto full_kv = std::make_shared<SharedKV>(), sliding_kv = std::make_shared<SharedKV>();
  auto step = model->step;
  int per_layer =
      is_null(config, "hidden_size_per_layer_input") ? 0 : config.integer("hidden_size_per_layer_input", 256);
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    bool slides = args.windows[i] > 0;
    Gemma4Attention attend(
        args, weights, name + ".self_attn", i, slides ? sliding : full, slides ? sliding_kv : full_kv);
    auto feed_forward = make_feed_forward(config, args, weights, name, i);
    RMSNorm before(weights, name + ".input_layernorm", dims, args.eps);
    RMSNorm after_attention(weights, name + ".post_attention_layernorm", dims, args.eps);
    RMSNorm after_feed_forward(weights, name + ".post_feedforward_layernorm", dims, args.eps);
    auto scalar = weights.take(name + ".layer_scalar", {1}, weights.dtype());
    std::optional<PerLayerGate> gate;
    if (per_layer > 0) {
      gate.emplace(weights, name, dims, per_layer, args.eps);
    }
    auto block = [=](const mx::array& x, Cache& cache) {
      auto h = x + after_attention(attend(before(x), cache));
      h = h + after_feed_forward(feed_forward(h));
      if (gate) {
        h = h + (*gate)(h, step->per_layer.value(), i);
      }
      return h * scalar;
    };
    CacheSpec own{args.kv_heads(i), args.heads_dim(i), args.heads_dim(i), {}};
    model->add(block, args.shares(i) ? CacheSpec{} : own);
  }
  model->norm = RMSNorm(weights, "model.norm", dims, args.eps);
  model->head = untied_head(with_defaults(config, {{"tie_word_embeddings", true}}), weights, args.vocab_size, dims);
  std::optional<PerLayerInputs> inputs;
  if (per_layer > 0) {
    auto sized = config;
    sized.json["hidden_size_per_layer_input"] = per_layer;
    inputs.emplace(sized, weights, "model.", args.eps);
  }
  model->embedded = [=, scale = std::sqrt(float(dims))](const mx::array& x, Caches&) {
    auto h = scaled(x, scale);
    if (inputs) {
      step->per_layer = (*inputs)(step->ids.value(), h);
    }
    return h;
  };
  if (!is_null(config, "final_logit_softcapping")) {
    float cap = config.number("final_logit_softcapping", 30);
    model->scored = [cap](const mx::array& x) { return softcapped(x, cap); };
  }
  return model;
}

/** Also gemma4_unified. */
std::unique_ptr<Model> make_gemma4(const Config& config, Weights& weights) {
  std::vector<std::string> others;
  for (std::string other :
       {"vision_tower.",
        "multi_modal_projector.",
        "audio_tower.",
        "embed_audio.",
        "embed_vision.",
        "vision_embedder."}) {
    others.push_back(other);
    others.push_back("model." + other);
  }
  auto text = text_part(config, weights, others);
  text.json["vocab_size"] = config.count("vocab_size", text.count("vocab_size", 262144));
  return make_gemma4_text(text, weights);
}

} // namespace parallm
