// LFM2 (Liquid AI, arXiv 2511.23404): layers of a short gated convolution, with
// attention in some of them; and LFM2-MoE (LFM2-8B-A1B), whose feed-forward
// blocks after the first are experts.
#include "base/error.h"
#include "models/config.h"
#include "models/head.h"
#include "models/model.h"
#include "models/rope_scaling.h"
#include "models/text_part.h"
#include "nn/embedding.h"
#include "nn/linear.h"
#include "nn/mlp.h"
#include "nn/moe.h"
#include "nn/norm.h"
#include "nn/recurrent.h"

#include <algorithm>
#include <cmath>

namespace parallm {

namespace {

/** config.json's fields by their names there; defaults are mlx-lm's
 * (models/lfm2.py, models/lfm2_moe.py). */
struct Lfm2Args {
  explicit Lfm2Args(const Config& config);

  int hidden_size;
  int num_hidden_layers;
  int num_attention_heads;
  int num_key_value_heads;
  int head_dim;
  int vocab_size;
  float norm_eps;
  bool conv_bias;
  int conv_L_cache;
  std::vector<bool> attends; // one a layer; the others convolve
  int ff_dim; // of feed-forward blocks without experts
  MLPNames mlp_names;
  int dense_layers; // the first layers, which have no experts
  int num_experts = 0;
  int num_experts_per_tok = 0;
  int moe_intermediate_size = 0;
  bool norm_topk_prob = false;
  bool use_expert_bias = false;
  float routed_scaling_factor = 1;
};

std::vector<bool> attention_layers(const Config& config, int layers) {
  std::vector<bool> attends(layers, false);
  if (config.has("full_attn_idxs")) {
    for (int layer : config.integers("full_attn_idxs")) {
      if (layer < 0 || layer >= layers) {
        fail(Kind::invalid, "[lfm2] 'full_attn_idxs' must name layers from 0 to {}; got {}", layers - 1, layer);
      }
      attends[layer] = true;
    }
    return attends;
  }
  auto types = config.texts("layer_types");
  if (int(types.size()) != layers) {
    fail(Kind::invalid, "[lfm2] 'layer_types' must name {} layers; got {}", layers, types.size());
  }
  for (int i = 0; i < layers; ++i) {
    attends[i] = types[i] == "full_attention";
    if (!attends[i] && types[i] != "conv") {
      fail(Kind::invalid, "[lfm2] 'layer_types' may hold full_attention and conv; got '{}'", types[i]);
    }
  }
  return attends;
}

/** Two thirds of the written size, times a factor, rounded up. */
int feed_forward_size(const Config& config) {
  int size = config.has("block_ff_dim") ? config.count("block_ff_dim") : config.count("intermediate_size");
  if (!config.boolean("block_auto_adjust_ff_dim", true)) {
    return size;
  }
  size = 2 * size / 3;
  size = static_cast<int>(config.number("block_ffn_dim_multiplier", 1.0) * size);
  int multiple = config.count("block_multiple_of", 256);
  return multiple * ((size + multiple - 1) / multiple);
}

Lfm2Args::Lfm2Args(const Config& config)
    : hidden_size(config.count("hidden_size")),
      num_hidden_layers(config.count("num_hidden_layers")),
      num_attention_heads(config.count("num_attention_heads")),
      num_key_value_heads(config.count("num_key_value_heads", num_attention_heads)),
      head_dim(hidden_size / num_attention_heads),
      vocab_size(config.count("vocab_size")),
      norm_eps(config.number("norm_eps", 1e-5)),
      conv_bias(config.boolean("conv_bias", false)),
      conv_L_cache(config.count("conv_L_cache", 3)),
      attends(attention_layers(config, num_hidden_layers)) {
  if (num_attention_heads % num_key_value_heads != 0) {
    fail(
        Kind::invalid,
        "[lfm2] 'num_attention_heads' must be a multiple of 'num_key_value_heads'; got {} and {}",
        num_attention_heads,
        num_key_value_heads);
  }
  if (config.text("model_type") != "lfm2_moe") {
    if (config.count("block_dim", hidden_size) != hidden_size) {
      fail(
          Kind::invalid,
          "[lfm2] 'block_dim' must be 'hidden_size', {}; got {}",
          hidden_size,
          config.count("block_dim"));
    }
    ff_dim = feed_forward_size(config);
    dense_layers = num_hidden_layers;
    mlp_names = {"w1", "w3", "w2"};
    return;
  }
  ff_dim = config.count("intermediate_size");
  dense_layers = config.integer("num_dense_layers");
  num_experts = config.count("num_experts");
  num_experts_per_tok = config.count("num_experts_per_tok");
  moe_intermediate_size = config.count("moe_intermediate_size");
  norm_topk_prob = config.boolean("norm_topk_prob", true);
  use_expert_bias = config.boolean("use_expert_bias", true);
  routed_scaling_factor = config.number("routed_scaling_factor", 1.0);
  if (num_experts_per_tok > num_experts) {
    fail(
        Kind::invalid,
        "[lfm2] 'num_experts_per_tok' must be at most 'num_experts', {}; got {}",
        num_experts,
        num_experts_per_tok);
  }
}

class SelfAttention {
 public:
  SelfAttention(const Lfm2Args& args, Weights& weights, const std::string& name, const Rope& rope)
      : heads_(args.num_attention_heads),
        kv_heads_(args.num_key_value_heads),
        head_dim_(args.head_dim),
        how_{.scale = 1 / std::sqrt(float(args.head_dim)), .rope = &rope, .sinks = {}},
        q_proj(weights, name + ".q_proj", heads_ * head_dim_, args.hidden_size),
        k_proj(weights, name + ".k_proj", kv_heads_ * head_dim_, args.hidden_size),
        v_proj(weights, name + ".v_proj", kv_heads_ * head_dim_, args.hidden_size),
        out_proj(weights, name + ".out_proj", args.hidden_size, heads_ * head_dim_),
        q_layernorm(weights, name + ".q_layernorm", head_dim_, args.norm_eps),
        k_layernorm(weights, name + ".k_layernorm", head_dim_, args.norm_eps) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    int count = x.shape(0);
    auto q = q_layernorm(mx::reshape(q_proj(x), {count, heads_, head_dim_}));
    auto k = k_layernorm(mx::reshape(k_proj(x), {count, kv_heads_, head_dim_}));
    auto v = mx::reshape(v_proj(x), {count, kv_heads_, head_dim_});
    auto out = cache.attend(q, k, v, how_);
    return out_proj(mx::reshape(out, {count, heads_ * head_dim_}));
  }

 private:
  int heads_;
  int kv_heads_;
  int head_dim_;
  Attention how_;
  Linear q_proj;
  Linear k_proj;
  Linear v_proj;
  Linear out_proj;
  RMSNorm q_layernorm;
  RMSNorm k_layernorm;
};

/** out_proj(c * conv(b * x)), the three from one projection. */
class ShortConv {
 public:
  ShortConv(const Lfm2Args& args, Weights& weights, const std::string& name)
      : conv(weights, name + ".conv", args.hidden_size, args.conv_L_cache, args.conv_bias, false),
        in_proj(weights, name + ".in_proj", 3 * args.hidden_size, args.hidden_size, args.conv_bias),
        out_proj(weights, name + ".out_proj", args.hidden_size, args.hidden_size, args.conv_bias) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto parts = mx::split(in_proj(x), 3, 1);
    auto convolved = cache.recur({parts[0] * parts[2]}, [&](auto& in, auto& states) { return conv(in[0], states[0]); });
    return out_proj(parts[1] * convolved);
  }

 private:
  CausalConv conv;
  Linear in_proj;
  Linear out_proj;
};

/** Experts chosen by sigmoid; a bias that balances their load takes part in the
 * choice alone. */
class SparseBlock {
 public:
  SparseBlock(const Lfm2Args& args, Weights& weights, const std::string& name)
      : choices_(args.num_experts_per_tok),
        norm_(args.norm_topk_prob),
        scale_(args.routed_scaling_factor),
        gate(weights, name + ".gate", args.num_experts, args.hidden_size),
        switch_mlp(weights, name + ".switch_mlp", args.num_experts, args.hidden_size, args.moe_intermediate_size) {
    if (args.use_expert_bias) {
      expert_bias = weights.take(name + ".expert_bias", {args.num_experts}, mx::float32);
    }
  }

  mx::array operator()(const mx::array& x) const {
    auto likely = mx::sigmoid(mx::astype(gate(x), mx::float32));
    auto which = top_experts(expert_bias ? likely + *expert_bias : likely, choices_);
    auto scores = mx::take_along_axis(likely, which, 1);
    if (norm_) {
      scores = scores / (mx::sum(scores, 1, true) + mx::array(1e-6f));
    }
    return switch_mlp(x, {which, scores * mx::array(scale_)});
  }

 private:
  int choices_;
  bool norm_;
  float scale_;
  Linear gate;
  SwitchGLU switch_mlp;
  std::optional<mx::array> expert_bias;
};

class Block {
 public:
  Block(const Lfm2Args& args, Weights& weights, const std::string& name, const Rope& rope, int layer)
      : operator_norm(weights, name + ".operator_norm", args.hidden_size, args.norm_eps),
        ffn_norm(weights, name + ".ffn_norm", args.hidden_size, args.norm_eps) {
    if (args.attends[layer]) {
      self_attn.emplace(args, weights, name + ".self_attn", rope);
    } else {
      conv.emplace(args, weights, name + ".conv");
    }
    if (layer < args.dense_layers) {
      mlp.emplace(weights, name + ".feed_forward", args.hidden_size, args.ff_dim, silu, false, args.mlp_names);
    } else {
      experts.emplace(args, weights, name + ".feed_forward");
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto normed = operator_norm(x);
    auto h = x + (self_attn ? (*self_attn)(normed, cache) : (*conv)(normed, cache));
    auto middle = ffn_norm(h);
    return h + (mlp ? (*mlp)(middle) : (*experts)(middle));
  }

 private:
  std::optional<SelfAttention> self_attn;
  std::optional<ShortConv> conv;
  std::optional<GatedMLP> mlp;
  std::optional<SparseBlock> experts;
  RMSNorm operator_norm;
  RMSNorm ffn_norm;
};

class Lfm2 : public Model {
 public:
  Lfm2(const Lfm2Args& args, const Config& config, Weights& weights)
      : args_(args),
        dtype_(weights.dtype()),
        rope_(make_rope(config, args.head_dim)),
        embed_tokens(weights, "model.embed_tokens", args.vocab_size, args.hidden_size),
        embedding_norm(weights, "model.embedding_norm", args.hidden_size, args.norm_eps) {
    for (int i = 0; i < args.num_hidden_layers; ++i) {
      layers.emplace_back(args, weights, fmt::format("model.layers.{}", i), rope_, i);
    }
    lm_head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  }

  mx::array hidden(const mx::array& ids, Caches& caches) override {
    auto h = embed_tokens(ids);
    for (size_t i = 0; i < layers.size(); ++i) {
      h = layers[i](h, caches.layer(i));
    }
    return embedding_norm(h);
  }

  mx::array logits(const mx::array& hidden) override {
    return lm_head ? (*lm_head)(hidden) : embed_tokens.as_linear(hidden);
  }

  std::vector<CacheSpec> cache_specs() const override {
    std::vector<CacheSpec> specs;
    for (bool attends : args_.attends) {
      if (attends) {
        specs.push_back({args_.num_key_value_heads, args_.head_dim, args_.head_dim});
      } else {
        specs.push_back({.states = {{{args_.conv_L_cache - 1, args_.hidden_size}, dtype_}}});
      }
    }
    return specs;
  }

  int vocabulary() const override {
    return args_.vocab_size;
  }

  int own_kv_past() const override {
    return rope_.original_length;
  }

 private:
  Lfm2Args args_;
  mx::Dtype dtype_;
  Rope rope_; // layers point to it
  Embedding embed_tokens;
  std::vector<Block> layers;
  RMSNorm embedding_norm;
  std::optional<Linear> lm_head;
};

/** LFM2 keeps Llama's first names of a feed-forward block's matrices; with
 * experts they have the usual ones, as in mlx-lm. */
void rename_feed_forward(const Lfm2Args& args, Weights& weights) {
  if (args.num_experts == 0) {
    return;
  }
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}.feed_forward.", i);
    for (auto [theirs, ours] : {std::pair("w1", "gate_proj"), {"w2", "down_proj"}, {"w3", "up_proj"}}) {
      weights.rename(name + theirs + ".", name + ours + ".");
      weights.stack(name + "experts.{}." + theirs, args.num_experts, name + "switch_mlp." + ours);
      weights.stack(name + "experts.{}." + ours, args.num_experts, name + "switch_mlp." + ours);
    }
  }
}

} // namespace

std::unique_ptr<Model> make_lfm2(const Config& config, Weights& weights) {
  Lfm2Args args(config);
  rename_feed_forward(args, weights);
  auto completed = config; // what config.json may leave out
  completed.json.emplace("rope_theta", 1e6);
  if (config.has("tie_embedding")) {
    completed.json.emplace("tie_word_embeddings", config.boolean("tie_embedding", true));
  }
  return std::make_unique<Lfm2>(args, completed, weights);
}

/** The text part of a model that also sees. */
std::unique_ptr<Model> make_lfm2_vl(const Config& config, Weights& weights) {
  return make_lfm2(
      text_part(
          config,
          weights,
          {"vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."}),
      weights);
}

} // namespace parallm
