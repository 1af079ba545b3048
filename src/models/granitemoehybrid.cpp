// Granite 4.0 (IBM): Mamba-2 layers (arXiv 2405.21060) with attention in some of
// them, each followed by experts beside a shared feed-forward block, or by a
// dense one.
#include "base/error.h"
#include "models/config.h"
#include "models/head.h"
#include "models/mamba2_layer.h"
#include "models/model.h"
#include "models/rope_scaling.h"
#include "nn/activation.h"
#include "nn/embedding.h"
#include "nn/mlp.h"
#include "nn/moe.h"
#include "nn/norm.h"

namespace parallm {

namespace {

/** config.json's fields by their names there; defaults are mlx-lm's
 * (models/granitemoehybrid.py). */
struct GraniteHybridArgs {
  explicit GraniteHybridArgs(const Config& config);

  int hidden_size;
  int num_hidden_layers;
  int intermediate_size;
  int num_attention_heads;
  int num_key_value_heads;
  int head_dim;
  int vocab_size;
  float rms_norm_eps;
  bool attention_bias;
  bool mlp_bias;
  float embedding_multiplier;
  float attention_multiplier;
  float residual_multiplier;
  float logits_scaling;
  bool rotates;
  std::vector<std::string> layer_types; // mamba or attention
  int num_local_experts; // 0: a dense feed-forward block
  int num_experts_per_tok = 0;
  int shared_intermediate_size = 0;
  std::optional<Mamba2Shape> mamba; // where there is a mamba layer
};

GraniteHybridArgs::GraniteHybridArgs(const Config& config)
    : hidden_size(config.count("hidden_size")),
      num_hidden_layers(config.count("num_hidden_layers")),
      intermediate_size(config.count("intermediate_size")),
      num_attention_heads(config.count("num_attention_heads")),
      num_key_value_heads(config.count("num_key_value_heads", num_attention_heads)),
      head_dim(hidden_size / num_attention_heads),
      vocab_size(config.count("vocab_size")),
      rms_norm_eps(config.number("rms_norm_eps", 1e-6)),
      attention_bias(config.boolean("attention_bias", false)),
      mlp_bias(config.boolean("mlp_bias", false)),
      embedding_multiplier(config.number("embedding_multiplier", 1.0)),
      attention_multiplier(config.number("attention_multiplier", 1.0)),
      residual_multiplier(config.number("residual_multiplier", 1.0)),
      logits_scaling(config.number("logits_scaling", 1.0)),
      rotates(config.text("position_embedding_type", "rope") != "nope"),
      layer_types(config.texts("layer_types")),
      num_local_experts(config.integer("num_local_experts", 0)) {
  if (int(layer_types.size()) != num_hidden_layers) {
    fail(
        Kind::invalid,
        "[granitemoehybrid] 'layer_types' must name {} layers; got {}",
        num_hidden_layers,
        layer_types.size());
  }
  if (num_attention_heads % num_key_value_heads != 0) {
    fail(
        Kind::invalid,
        "[granitemoehybrid] 'num_attention_heads' must be a multiple of 'num_key_value_heads'; got {} and {}",
        num_attention_heads,
        num_key_value_heads);
  }
  auto act = config.text("hidden_act", "silu");
  if (act != "silu") {
    fail(Kind::invalid, "[granitemoehybrid] 'hidden_act' must be silu; got '{}'", act);
  }
  auto positions = config.text("position_embedding_type", "rope");
  if (positions != "rope" && positions != "nope") {
    fail(Kind::invalid, "[granitemoehybrid] 'position_embedding_type' must be rope or nope; got '{}'", positions);
  }
  for (auto& type : layer_types) {
    if (type != "mamba" && type != "attention") {
      fail(Kind::invalid, "[granitemoehybrid] 'layer_types' may hold mamba and attention; got '{}'", type);
    }
    if (type == "mamba" && !mamba) {
      mamba = Mamba2Shape{
          .hidden = hidden_size,
          .heads = config.count("mamba_n_heads"),
          .head_dim = config.count("mamba_d_head"),
          .state_size = config.count("mamba_d_state"),
          .groups = config.count("mamba_n_groups"),
          .kernel = config.count("mamba_d_conv"),
          .bias = config.boolean("mamba_proj_bias", false),
          .conv_bias = config.boolean("mamba_conv_bias", true),
          .least_dt = 0.001f,
          .most_dt = 100};
    }
  }
  if (mamba && config.has("time_step_limit")) {
    std::tie(mamba->least_dt, mamba->most_dt) = time_step_limit(config);
  }
  if (num_local_experts > 0) {
    num_experts_per_tok = config.count("num_experts_per_tok");
    shared_intermediate_size = config.count("shared_intermediate_size");
    if (num_experts_per_tok > num_local_experts) {
      fail(
          Kind::invalid,
          "[granitemoehybrid] 'num_experts_per_tok' must be at most 'num_local_experts', {}; got {}",
          num_local_experts,
          num_experts_per_tok);
    }
  }
}

class MambaMixer {
 public:
  MambaMixer(const GraniteHybridArgs& args, Weights& weights, const std::string& name)
      : layer(*args.mamba, weights, name),
        norm(weights, name + ".norm", args.mamba->inner(), args.rms_norm_eps),
        out_proj(weights, name + ".out_proj", args.hidden_size, args.mamba->inner(), args.mamba->bias) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [y, gate] = layer(x, cache);
    return out_proj(norm(swiglu(gate, y)));
  }

 private:
  Mamba2Layer layer;
  RMSNorm norm;
  Linear out_proj;
};

class SelfAttention {
 public:
  SelfAttention(const GraniteHybridArgs& args, Weights& weights, const std::string& name, const Rope& rope)
      : heads_(args.num_attention_heads),
        kv_heads_(args.num_key_value_heads),
        head_dim_(args.head_dim),
        how_{.scale = args.attention_multiplier, .rope = args.rotates ? &rope : nullptr, .sinks = {}},
        q_proj(weights, name + ".q_proj", heads_ * head_dim_, args.hidden_size, args.attention_bias),
        k_proj(weights, name + ".k_proj", kv_heads_ * head_dim_, args.hidden_size, args.attention_bias),
        v_proj(weights, name + ".v_proj", kv_heads_ * head_dim_, args.hidden_size, args.attention_bias),
        o_proj(weights, name + ".o_proj", args.hidden_size, heads_ * head_dim_, args.attention_bias) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    int count = x.shape(0);
    auto q = mx::reshape(q_proj(x), {count, heads_, head_dim_});
    auto k = mx::reshape(k_proj(x), {count, kv_heads_, head_dim_});
    auto v = mx::reshape(v_proj(x), {count, kv_heads_, head_dim_});
    auto out = cache.attend(q, k, v, how_);
    return o_proj(mx::reshape(out, {count, heads_ * head_dim_}));
  }

 private:
  int heads_;
  int kv_heads_;
  int head_dim_;
  Attention how_;
  Linear q_proj;
  Linear k_proj;
  Linear v_proj;
  Linear o_proj;
};

/** Experts by softmax over the chosen ones, and one block that all tokens take. */
class SparseBlock {
 public:
  SparseBlock(const GraniteHybridArgs& args, Weights& weights, const std::string& name)
      : choices_(args.num_experts_per_tok),
        router(weights, name + ".block_sparse_moe.router.layer", args.num_local_experts, args.hidden_size),
        switch_mlp(
            weights,
            name + ".block_sparse_moe.switch_mlp",
            args.num_local_experts,
            args.hidden_size,
            args.intermediate_size),
        shared_input(weights, name + ".shared_mlp.input_linear", 2 * args.shared_intermediate_size, args.hidden_size),
        shared_output(weights, name + ".shared_mlp.output_linear", args.hidden_size, args.shared_intermediate_size) {}

  mx::array operator()(const mx::array& x) const {
    auto halves = mx::split(shared_input(x), 2, 1);
    return switch_mlp(x, choose_then_softmax(router(x), choices_)) + shared_output(swiglu(halves[0], halves[1]));
  }

 private:
  int choices_;
  Linear router;
  SwitchGLU switch_mlp;
  Linear shared_input;
  Linear shared_output;
};

class Block {
 public:
  Block(const GraniteHybridArgs& args, Weights& weights, const std::string& name, const Rope& rope, int layer)
      : residual_(args.residual_multiplier, weights.dtype()),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps) {
    if (args.layer_types[layer] == "mamba") {
      mamba.emplace(args, weights, name + ".mamba");
    } else {
      self_attn.emplace(args, weights, name + ".self_attn", rope);
    }
    if (args.num_local_experts > 0) {
      experts.emplace(args, weights, name);
    } else {
      mlp.emplace(weights, name + ".mlp", args.hidden_size, args.intermediate_size, silu, args.mlp_bias);
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto normed = input_layernorm(x);
    auto h = x + (mamba ? (*mamba)(normed, cache) : (*self_attn)(normed, cache)) * residual_;
    auto middle = post_attention_layernorm(h);
    return h + (mlp ? (*mlp)(middle) : (*experts)(middle)) * residual_;
  }

 private:
  mx::array residual_;
  std::optional<MambaMixer> mamba;
  std::optional<SelfAttention> self_attn;
  std::optional<GatedMLP> mlp;
  std::optional<SparseBlock> experts;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
};

class GraniteHybrid : public Model {
 public:
  GraniteHybrid(const GraniteHybridArgs& args, const Config& config, Weights& weights)
      : args_(args),
        dtype_(weights.dtype()),
        rope_(make_rope(config, args.head_dim)),
        embed_tokens(weights, "model.embed_tokens", args.vocab_size, args.hidden_size),
        norm(weights, "model.norm", args.hidden_size, args.rms_norm_eps) {
    for (int i = 0; i < args.num_hidden_layers; ++i) {
      layers.emplace_back(args, weights, fmt::format("model.layers.{}", i), rope_, i);
    }
    lm_head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  }

  mx::array hidden(const mx::array& ids, Caches& caches) override {
    auto h = embed_tokens(ids) * mx::array(args_.embedding_multiplier, dtype_);
    for (size_t i = 0; i < layers.size(); ++i) {
      h = layers[i](h, caches.layer(i));
    }
    return norm(h);
  }

  mx::array logits(const mx::array& hidden) override {
    auto all = lm_head ? (*lm_head)(hidden) : embed_tokens.as_linear(hidden);
    return all / mx::array(args_.logits_scaling, all.dtype());
  }

  std::vector<CacheSpec> cache_specs() const override {
    std::vector<CacheSpec> specs;
    for (auto& type : args_.layer_types) {
      specs.push_back(
          type == "mamba" ? Mamba2Layer::cache_spec(*args_.mamba, dtype_)
                          : CacheSpec{args_.num_key_value_heads, args_.head_dim, args_.head_dim, {}});
    }
    return specs;
  }

  int vocabulary() const override {
    return args_.vocab_size;
  }

  int own_kv_past() const override {
    return args_.rotates ? rope_.original_length : 0;
  }

 private:
  GraniteHybridArgs args_;
  mx::Dtype dtype_;
  Rope rope_; // layers point to it
  Embedding embed_tokens;
  std::vector<Block> layers;
  RMSNorm norm;
  std::optional<Linear> lm_head;
};

/** gate_proj and up_proj lie in one tensor of `from`, one after the other. */
void split_gate_up(Weights& weights, const std::string& from, const std::string& to, int axis) {
  for (auto* part : {".weight", ".scales", ".biases"}) {
    if (auto both = weights.pull(from + ".input_linear" + part)) {
      auto halves = mx::split(*both, 2, axis);
      weights.put(to + ".gate_proj" + part, halves[0]);
      weights.put(to + ".up_proj" + part, halves[1]);
    }
  }
  weights.rename(from + ".output_linear.", to + ".down_proj.");
}

} // namespace

std::unique_ptr<Model> make_granitemoehybrid(const Config& config, Weights& weights) {
  GraniteHybridArgs args(config);
  for (int i = 0; i < args.num_hidden_layers; ++i) { // Hugging Face's layout
    auto name = fmt::format("model.layers.{}", i);
    if (args.num_local_experts > 0) {
      split_gate_up(weights, name + ".block_sparse_moe", name + ".block_sparse_moe.switch_mlp", 1);
    } else {
      split_gate_up(weights, name + ".shared_mlp", name + ".mlp", 0);
    }
  }
  auto completed = config;
  completed.json.emplace("tie_word_embeddings", true);
  return std::make_unique<GraniteHybrid>(args, completed, weights);
}

} // namespace parallm
