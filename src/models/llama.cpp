// Llama (arXiv 2302.13971, 2307.09288, 2407.21783) and models of its shape:
// Mistral (arXiv 2310.06825), SmolLM.
#include "base/error.h"
#include "models/config.h"
#include "models/head.h"
#include "models/model.h"
#include "models/rope_scaling.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/mlp.h"
#include "nn/norm.h"

#include <cmath>

namespace parallm {

namespace {

/** config.json's fields by their names there; defaults are mlx-lm's
 * (models/llama.py). */
struct LlamaArgs {
  explicit LlamaArgs(const Config& config);

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
  std::vector<int> windows; // one a layer; 0: sees all
};

/** `layer_types` says which layers slide; without it Mistral slides in all
 * (transformers' modeling_mistral.py). */
std::vector<int> sliding_windows(const Config& config, int layers) {
  std::vector<int> windows(layers, 0);
  if (config.has("layer_types")) {
    auto types = config.texts("layer_types");
    if (int(types.size()) != layers) {
      fail(Kind::invalid, "[llama] 'layer_types' must name {} layers; got {}", layers, types.size());
    }
    for (int i = 0; i < layers; ++i) {
      if (types[i] == "sliding_attention") {
        windows[i] = config.count("sliding_window");
      } else if (types[i] != "full_attention") {
        fail(
            Kind::invalid,
            "[llama] 'layer_types' may hold full_attention and "
            "sliding_attention; got '{}'",
            types[i]);
      }
    }
  } else if (
      config.text("model_type") == "mistral" && config.boolean("use_sliding_window", true) &&
      config.has("sliding_window")) {
    windows.assign(layers, config.count("sliding_window"));
  }
  return windows;
}

LlamaArgs::LlamaArgs(const Config& config)
    : hidden_size(config.count("hidden_size")),
      num_hidden_layers(config.count("num_hidden_layers")),
      intermediate_size(config.count("intermediate_size")),
      num_attention_heads(config.count("num_attention_heads")),
      num_key_value_heads(config.count("num_key_value_heads", num_attention_heads)),
      head_dim(config.count("head_dim", std::max(hidden_size / num_attention_heads, 1))),
      vocab_size(config.count("vocab_size")),
      rms_norm_eps(config.number("rms_norm_eps", 1e-6)),
      attention_bias(config.boolean("attention_bias", false)),
      mlp_bias(config.boolean("mlp_bias", false)),
      windows(sliding_windows(config, num_hidden_layers)) {
  if (num_attention_heads % num_key_value_heads != 0) {
    fail(
        Kind::invalid,
        "[llama] 'num_attention_heads' must be a multiple of "
        "'num_key_value_heads'; got {} and {}",
        num_attention_heads,
        num_key_value_heads);
  }
  auto act = config.text("hidden_act", "silu");
  if (act != "silu") {
    fail(Kind::invalid, "[llama] 'hidden_act' must be silu; got '{}'", act);
  }
}

class SelfAttention {
 public:
  SelfAttention(const LlamaArgs& args, Weights& weights, const std::string& name, const Rope& rope, int window)
      : heads_(args.num_attention_heads),
        kv_heads_(args.num_key_value_heads),
        head_dim_(args.head_dim),
        how_{.scale = 1 / std::sqrt(float(args.head_dim)), .rope = &rope, .window = window, .sinks = {}},
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

class Block {
 public:
  Block(const LlamaArgs& args, Weights& weights, const std::string& name, const Rope& rope, int window)
      : self_attn(args, weights, name + ".self_attn", rope, window),
        mlp(weights, name + ".mlp", args.hidden_size, args.intermediate_size, silu, args.mlp_bias),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = x + self_attn(input_layernorm(x), cache);
    return h + mlp(post_attention_layernorm(h));
  }

 private:
  SelfAttention self_attn;
  GatedMLP mlp;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
};

class Llama : public Model {
 public:
  Llama(const LlamaArgs& args, const Config& config, Weights& weights)
      : args_(args),
        rope_(make_rope(config, args.head_dim)),
        embed_tokens(weights, "model.embed_tokens", args.vocab_size, args.hidden_size),
        norm(weights, "model.norm", args.hidden_size, args.rms_norm_eps) {
    for (int i = 0; i < args.num_hidden_layers; ++i) {
      auto name = fmt::format("model.layers.{}", i);
      layers.emplace_back(args, weights, name, rope_, args.windows[i]);
    }
    lm_head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  }

  mx::array hidden(const mx::array& ids, Caches& caches) override {
    auto h = embed_tokens(ids);
    for (size_t i = 0; i < layers.size(); ++i) {
      h = layers[i](h, caches.layer(i));
    }
    return norm(h);
  }

  mx::array logits(const mx::array& hidden) override {
    return lm_head ? (*lm_head)(hidden) : embed_tokens.as_linear(hidden);
  }

  std::vector<CacheSpec> cache_specs() const override {
    return {layers.size(), {args_.num_key_value_heads, args_.head_dim, args_.head_dim}};
  }

  int vocabulary() const override {
    return args_.vocab_size;
  }

  int own_kv_past() const override {
    return rope_.original_length;
  }

 private:
  LlamaArgs args_;
  Rope rope_; // layers point to it
  Embedding embed_tokens;
  std::vector<Block> layers;
  RMSNorm norm;
  std::optional<Linear> lm_head;
};

} // namespace

std::unique_ptr<Model> make_llama(const Config& config, Weights& weights) {
  return std::make_unique<Llama>(LlamaArgs(config), config, weights);
}

} // namespace parallm
