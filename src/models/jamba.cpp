// Jamba (arXiv 2403.19887): Mamba layers with attention in some of them, without
// positions, and experts in some of the feed-forward blocks.
#include "base/error.h"
#include "models/config.h"
#include "models/head.h"
#include "models/mamba_layer.h"
#include "models/model.h"
#include "nn/embedding.h"
#include "nn/mlp.h"
#include "nn/moe.h"
#include "nn/norm.h"

#include <cmath>

namespace parallm {

namespace {

/** config.json's fields by their names there; defaults are mlx-lm's
 * (models/jamba.py). */
struct JambaArgs {
  explicit JambaArgs(const Config& config);

  int hidden_size;
  int num_hidden_layers;
  int intermediate_size;
  int num_attention_heads;
  int num_key_value_heads;
  int head_dim;
  int vocab_size;
  float rms_norm_eps;
  std::vector<bool> attends; // one a layer; the others are Mamba's
  std::vector<bool> sparse; // one a layer: it has experts
  int num_experts;
  int num_experts_per_tok;
  MambaShape mamba;
};

std::vector<bool> attention_layers(const Config& config, int layers) {
  std::vector<bool> attends(layers);
  if (!config.has("layers_block_type")) {
    int period = config.count("attn_layer_period"), offset = config.integer("attn_layer_offset");
    for (int i = 0; i < layers; ++i) {
      attends[i] = i % period == offset;
    }
    return attends;
  }
  auto types = config.texts("layers_block_type");
  if (int(types.size()) != layers) {
    fail(Kind::invalid, "[jamba] 'layers_block_type' must name {} layers; got {}", layers, types.size());
  }
  for (int i = 0; i < layers; ++i) {
    attends[i] = types[i] == "attention";
    if (!attends[i] && types[i] != "mamba") {
      fail(Kind::invalid, "[jamba] 'layers_block_type' may hold attention and mamba; got '{}'", types[i]);
    }
  }
  return attends;
}

JambaArgs::JambaArgs(const Config& config)
    : hidden_size(config.count("hidden_size")),
      num_hidden_layers(config.count("num_hidden_layers")),
      intermediate_size(config.count("intermediate_size")),
      num_attention_heads(config.count("num_attention_heads")),
      num_key_value_heads(config.count("num_key_value_heads", num_attention_heads)),
      head_dim(hidden_size / num_attention_heads),
      vocab_size(config.count("vocab_size")),
      rms_norm_eps(config.number("rms_norm_eps", 1e-6)),
      attends(attention_layers(config, num_hidden_layers)),
      sparse(num_hidden_layers),
      num_experts(config.integer("num_experts", 1)),
      num_experts_per_tok(config.integer("num_experts_per_tok", 1)) {
  auto act = config.text("hidden_act", "silu");
  if (act != "silu") {
    fail(Kind::invalid, "[jamba] 'hidden_act' must be silu; got '{}'", act);
  }
  if (num_attention_heads % num_key_value_heads != 0) {
    fail(
        Kind::invalid,
        "[jamba] 'num_attention_heads' must be a multiple of 'num_key_value_heads'; got {} and {}",
        num_attention_heads,
        num_key_value_heads);
  }
  if (num_experts > 1) {
    int period = config.count("expert_layer_period"), offset = config.integer("expert_layer_offset");
    for (int i = 0; i < num_hidden_layers; ++i) {
      sparse[i] = i % period == offset;
    }
    if (num_experts_per_tok < 1 || num_experts_per_tok > num_experts) {
      fail(
          Kind::invalid,
          "[jamba] 'num_experts_per_tok' must be from 1 to 'num_experts', {}; got {}",
          num_experts,
          num_experts_per_tok);
    }
  }
  mamba = {
      .hidden = hidden_size,
      .inner = config.count("mamba_expand") * hidden_size,
      .state_size = config.count("mamba_d_state"),
      .rank = time_step_rank(config, "mamba_dt_rank", hidden_size),
      .kernel = config.count("mamba_d_conv"),
      .bias = config.boolean("mamba_proj_bias", false),
      .conv_bias = config.boolean("mamba_conv_bias", true)};
}

class SelfAttention {
 public:
  SelfAttention(const JambaArgs& args, Weights& weights, const std::string& name)
      : heads_(args.num_attention_heads),
        kv_heads_(args.num_key_value_heads),
        head_dim_(args.head_dim),
        how_{.scale = 1 / std::sqrt(float(args.head_dim)), .sinks = {}},
        q_proj(weights, name + ".q_proj", heads_ * head_dim_, args.hidden_size),
        k_proj(weights, name + ".k_proj", kv_heads_ * head_dim_, args.hidden_size),
        v_proj(weights, name + ".v_proj", kv_heads_ * head_dim_, args.hidden_size),
        o_proj(weights, name + ".o_proj", args.hidden_size, heads_ * head_dim_) {}

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

/** Experts by softmax over the chosen ones. */
class SparseBlock {
 public:
  SparseBlock(const JambaArgs& args, Weights& weights, const std::string& name)
      : choices_(args.num_experts_per_tok),
        router(weights, name + ".router", args.num_experts, args.hidden_size),
        switch_mlp(weights, name + ".switch_mlp", args.num_experts, args.hidden_size, args.intermediate_size) {}

  mx::array operator()(const mx::array& x) const {
    return switch_mlp(x, choose_then_softmax(router(x), choices_));
  }

 private:
  int choices_;
  Linear router;
  SwitchGLU switch_mlp;
};

MambaLayer::Norms norms(const JambaArgs& args, Weights& weights, const std::string& name) {
  auto norm = [&](const char* of, int dims) { return RMSNorm(weights, name + of, dims, args.rms_norm_eps); };
  return {
      norm(".dt_layernorm", args.mamba.rank),
      norm(".b_layernorm", args.mamba.state_size),
      norm(".c_layernorm", args.mamba.state_size)};
}

class Block {
 public:
  Block(const JambaArgs& args, Weights& weights, const std::string& name, int layer)
      : input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps),
        pre_ff_layernorm(weights, name + ".pre_ff_layernorm", args.hidden_size, args.rms_norm_eps) {
    if (args.attends[layer]) {
      self_attn.emplace(args, weights, name + ".self_attn");
    } else {
      mamba.emplace(args.mamba, weights, name + ".mamba", norms(args, weights, name + ".mamba"));
    }
    if (args.sparse[layer]) {
      experts.emplace(args, weights, name + ".feed_forward");
    } else {
      mlp.emplace(weights, name + ".feed_forward", args.hidden_size, args.intermediate_size);
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto normed = input_layernorm(x);
    auto h = x + (self_attn ? (*self_attn)(normed, cache) : (*mamba)(normed, cache));
    auto middle = pre_ff_layernorm(h);
    return h + (mlp ? (*mlp)(middle) : (*experts)(middle));
  }

 private:
  std::optional<SelfAttention> self_attn;
  std::optional<MambaLayer> mamba;
  std::optional<GatedMLP> mlp;
  std::optional<SparseBlock> experts;
  RMSNorm input_layernorm;
  RMSNorm pre_ff_layernorm;
};

class Jamba : public Model {
 public:
  Jamba(const JambaArgs& args, const Config& config, Weights& weights)
      : args_(args),
        dtype_(weights.dtype()),
        embed_tokens(weights, "model.embed_tokens", args.vocab_size, args.hidden_size),
        final_layernorm(weights, "model.final_layernorm", args.hidden_size, args.rms_norm_eps) {
    for (int i = 0; i < args.num_hidden_layers; ++i) {
      layers.emplace_back(args, weights, fmt::format("model.layers.{}", i), i);
    }
    lm_head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  }

  mx::array hidden(const mx::array& ids, Caches& caches) override {
    auto h = embed_tokens(ids);
    for (size_t i = 0; i < layers.size(); ++i) {
      h = layers[i](h, caches.layer(i));
    }
    return final_layernorm(h);
  }

  mx::array logits(const mx::array& hidden) override {
    return lm_head ? (*lm_head)(hidden) : embed_tokens.as_linear(hidden);
  }

  std::vector<CacheSpec> cache_specs() const override {
    std::vector<CacheSpec> specs;
    for (bool attends : args_.attends) {
      specs.push_back(
          attends ? CacheSpec{args_.num_key_value_heads, args_.head_dim, args_.head_dim, {}}
                  : MambaLayer::cache_spec(args_.mamba, dtype_));
    }
    return specs;
  }

  int vocabulary() const override {
    return args_.vocab_size;
  }

 private:
  JambaArgs args_;
  mx::Dtype dtype_;
  Embedding embed_tokens;
  std::vector<Block> layers;
  RMSNorm final_layernorm;
  std::optional<Linear> lm_head;
};

} // namespace

std::unique_ptr<Model> make_jamba(const Config& config, Weights& weights) {
  JambaArgs args(config);
  for (int i = 0; i < args.num_hidden_layers; ++i) { // Hugging Face's layout
    auto name = fmt::format("model.layers.{}.feed_forward.", i);
    for (std::string matrix : {"gate_proj", "up_proj", "down_proj"}) {
      weights.stack(name + "experts.{}." + matrix, args.num_experts, name + "switch_mlp." + matrix);
    }
  }
  return std::make_unique<Jamba>(args, config, weights);
}

} // namespace parallm
