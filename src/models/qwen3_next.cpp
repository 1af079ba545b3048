// Qwen3-Next and Qwen3.5 (Qwen team): three layers of Gated DeltaNet (arXiv
// 2412.06464) to one of attention with an output gate (arXiv 2505.06708);
// experts beside a shared one, or a dense feed-forward block. Of Qwen3.5's
// multimodal repositories the text model.
#include "base/error.h"
#include "models/config.h"
#include "models/gated_delta_net.h"
#include "models/head.h"
#include "models/model.h"
#include "models/rope_scaling.h"
#include "nn/activation.h"
#include "nn/embedding.h"
#include "nn/mlp.h"
#include "nn/moe.h"
#include "nn/norm.h"

#include <algorithm>
#include <cmath>

namespace parallm {

namespace {

/** config.json's fields by their names there; defaults are mlx-lm's
 * (models/qwen3_next.py, models/qwen3_5.py). */
struct Qwen3NextArgs {
  explicit Qwen3NextArgs(const Config& config);

  int hidden_size;
  int num_hidden_layers;
  int intermediate_size;
  int num_attention_heads;
  int num_key_value_heads;
  int head_dim;
  int vocab_size;
  float rms_norm_eps;
  bool attention_bias;
  std::vector<bool> attends; // one a layer; the others are DeltaNets
  std::vector<bool> sparse; // one a layer: it has experts
  int num_experts;
  int num_experts_per_tok = 0;
  int moe_intermediate_size = 0;
  int shared_expert_intermediate_size = 0;
  bool norm_topk_prob;
  DeltaNetShape delta_net;
};

/** `layer_types`, or each `full_attention_interval`-th layer. */
std::vector<bool> attention_layers(const Config& config, int layers) {
  std::vector<bool> attends(layers);
  if (!config.has("layer_types")) {
    int interval = config.count("full_attention_interval", 4);
    for (int i = 0; i < layers; ++i) {
      attends[i] = (i + 1) % interval == 0;
    }
    return attends;
  }
  auto types = config.texts("layer_types");
  if (int(types.size()) != layers) {
    fail(Kind::invalid, "[qwen3_next] 'layer_types' must name {} layers; got {}", layers, types.size());
  }
  for (int i = 0; i < layers; ++i) {
    attends[i] = types[i] == "full_attention";
    if (!attends[i] && types[i] != "linear_attention") {
      fail(
          Kind::invalid, "[qwen3_next] 'layer_types' may hold full_attention and linear_attention; got '{}'", types[i]);
    }
  }
  return attends;
}

std::vector<bool> sparse_layers(const Config& config, int layers) {
  std::vector<bool> sparse(layers);
  auto dense = config.integers("mlp_only_layers");
  int step = config.count("decoder_sparse_step", 1);
  for (int i = 0; i < layers; ++i) {
    sparse[i] = config.integer("num_experts", 0) > 0 && (i + 1) % step == 0 &&
        std::find(dense.begin(), dense.end(), i) == dense.end();
  }
  return sparse;
}

Qwen3NextArgs::Qwen3NextArgs(const Config& config)
    : hidden_size(config.count("hidden_size")),
      num_hidden_layers(config.count("num_hidden_layers")),
      intermediate_size(config.integer("intermediate_size", 0)),
      num_attention_heads(config.count("num_attention_heads")),
      num_key_value_heads(config.count("num_key_value_heads", num_attention_heads)),
      head_dim(config.count("head_dim", std::max(hidden_size / num_attention_heads, 1))),
      vocab_size(config.count("vocab_size")),
      rms_norm_eps(config.number("rms_norm_eps", 1e-6)),
      attention_bias(config.boolean("attention_bias", false)),
      attends(attention_layers(config, num_hidden_layers)),
      sparse(sparse_layers(config, num_hidden_layers)),
      num_experts(config.integer("num_experts", 0)),
      norm_topk_prob(config.boolean("norm_topk_prob", true)),
      delta_net{
          .hidden = hidden_size,
          .key_heads = config.count("linear_num_key_heads"),
          .value_heads = config.count("linear_num_value_heads"),
          .key_dim = config.count("linear_key_head_dim"),
          .value_dim = config.count("linear_value_head_dim"),
          .kernel = config.count("linear_conv_kernel_dim"),
          .eps = rms_norm_eps} {
  if (num_attention_heads % num_key_value_heads != 0) {
    fail(
        Kind::invalid,
        "[qwen3_next] 'num_attention_heads' must be a multiple of 'num_key_value_heads'; got {} and {}",
        num_attention_heads,
        num_key_value_heads);
  }
  auto act = config.text("hidden_act", "silu");
  if (act != "silu") {
    fail(Kind::invalid, "[qwen3_next] 'hidden_act' must be silu; got '{}'", act);
  }
  if (num_experts > 0) {
    num_experts_per_tok = config.count("num_experts_per_tok");
    moe_intermediate_size = config.count("moe_intermediate_size");
    shared_expert_intermediate_size = config.count("shared_expert_intermediate_size");
    if (num_experts_per_tok > num_experts) {
      fail(
          Kind::invalid,
          "[qwen3_next] 'num_experts_per_tok' must be at most 'num_experts', {}; got {}",
          num_experts,
          num_experts_per_tok);
    }
  }
}

/** Attention whose output a gate scales, from the projection that gives q. */
class GatedAttention {
 public:
  GatedAttention(const Qwen3NextArgs& args, Weights& weights, const std::string& name, const Rope& rope)
      : heads_(args.num_attention_heads),
        kv_heads_(args.num_key_value_heads),
        head_dim_(args.head_dim),
        how_{.scale = 1 / std::sqrt(float(args.head_dim)), .rope = &rope, .sinks = {}},
        q_proj(weights, name + ".q_proj", 2 * heads_ * head_dim_, args.hidden_size, args.attention_bias),
        k_proj(weights, name + ".k_proj", kv_heads_ * head_dim_, args.hidden_size, args.attention_bias),
        v_proj(weights, name + ".v_proj", kv_heads_ * head_dim_, args.hidden_size, args.attention_bias),
        o_proj(weights, name + ".o_proj", args.hidden_size, heads_ * head_dim_, args.attention_bias),
        q_norm(weights, name + ".q_norm", head_dim_, args.rms_norm_eps),
        k_norm(weights, name + ".k_norm", head_dim_, args.rms_norm_eps) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    int count = x.shape(0);
    auto parts = mx::split(mx::reshape(q_proj(x), {count, heads_, 2 * head_dim_}), 2, 2);
    auto k = mx::reshape(k_proj(x), {count, kv_heads_, head_dim_});
    auto v = mx::reshape(v_proj(x), {count, kv_heads_, head_dim_});
    auto out = cache.attend(q_norm(parts[0]), k_norm(k), v, how_) * mx::sigmoid(parts[1]);
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
  RMSNorm q_norm;
  RMSNorm k_norm;
};

/** Experts by softmax over all, beside a shared one that its own gate scales. */
class SparseBlock {
 public:
  SparseBlock(const Qwen3NextArgs& args, Weights& weights, const std::string& name)
      : choices_(args.num_experts_per_tok),
        norm_(args.norm_topk_prob),
        gate(weights, name + ".gate", args.num_experts, args.hidden_size),
        switch_mlp(weights, name + ".switch_mlp", args.num_experts, args.hidden_size, args.moe_intermediate_size),
        shared_expert(weights, name + ".shared_expert", args.hidden_size, args.shared_expert_intermediate_size),
        shared_expert_gate(weights, name + ".shared_expert_gate", 1, args.hidden_size) {}

  mx::array operator()(const mx::array& x) const {
    return switch_mlp(x, choose_by_softmax(gate(x), choices_, norm_)) +
        mx::sigmoid(shared_expert_gate(x)) * shared_expert(x);
  }

 private:
  int choices_;
  bool norm_;
  Linear gate;
  SwitchGLU switch_mlp;
  GatedMLP shared_expert;
  Linear shared_expert_gate;
};

class Block {
 public:
  Block(const Qwen3NextArgs& args, Weights& weights, const std::string& name, const Rope& rope, int layer)
      : input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps) {
    if (args.attends[layer]) {
      self_attn.emplace(args, weights, name + ".self_attn", rope);
    } else {
      linear_attn.emplace(args.delta_net, weights, name + ".linear_attn");
    }
    if (args.sparse[layer]) {
      experts.emplace(args, weights, name + ".mlp");
    } else {
      mlp.emplace(weights, name + ".mlp", args.hidden_size, args.intermediate_size);
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto normed = input_layernorm(x);
    auto h = x + (self_attn ? (*self_attn)(normed, cache) : (*linear_attn)(normed, cache));
    auto middle = post_attention_layernorm(h);
    return h + (mlp ? (*mlp)(middle) : (*experts)(middle));
  }

 private:
  std::optional<GatedAttention> self_attn;
  std::optional<GatedDeltaNet> linear_attn;
  std::optional<GatedMLP> mlp;
  std::optional<SparseBlock> experts;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
};

class Qwen3Next : public Model {
 public:
  Qwen3Next(const Qwen3NextArgs& args, const Config& config, Weights& weights)
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
    std::vector<CacheSpec> specs;
    for (bool attends : args_.attends) {
      specs.push_back(
          attends ? CacheSpec{args_.num_key_value_heads, args_.head_dim, args_.head_dim, {}}
                  : GatedDeltaNet::cache_spec(args_.delta_net, dtype_));
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
  Qwen3NextArgs args_;
  mx::Dtype dtype_;
  Rope rope_; // layers point to it
  Embedding embed_tokens;
  std::vector<Block> layers;
  RMSNorm norm;
  std::optional<Linear> lm_head;
};

/** Qwen3-Next's checkpoints hold the rows of q, k, v and z (and of b and a) of
 * one key head after another; Qwen3.5's a matrix each. */
void split_projections(const DeltaNetShape& shape, Weights& weights, const std::string& name) {
  int repeats = shape.value_heads / shape.key_heads, values = repeats * shape.value_dim;
  auto parts_of = [&](const std::string& tensor, const mx::Shape& ends) {
    std::vector<mx::array> parts;
    if (auto all = weights.pull(tensor)) {
      auto by_head = mx::reshape(*all, {shape.key_heads, -1, all->shape(1)});
      for (auto& part : mx::split(by_head, ends, 1)) {
        parts.push_back(mx::reshape(part, {-1, all->shape(1)}));
      }
    }
    return parts;
  };
  weights.record_whole(name + ".in_proj_qkvz", shape.hidden, {name + ".in_proj_qkv", name + ".in_proj_z"});
  weights.record_whole(name + ".in_proj_ba", shape.hidden, {name + ".in_proj_b", name + ".in_proj_a"});
  for (std::string part : {".weight", ".scales", ".biases"}) {
    auto qkvz = parts_of(name + ".in_proj_qkvz" + part, {shape.key_dim, 2 * shape.key_dim, 2 * shape.key_dim + values});
    if (!qkvz.empty()) {
      weights.put(name + ".in_proj_qkv" + part, mx::concatenate({qkvz[0], qkvz[1], qkvz[2]}, 0));
      weights.put(name + ".in_proj_z" + part, qkvz[3]);
    }
    auto ba = parts_of(name + ".in_proj_ba" + part, {repeats});
    if (!ba.empty()) {
      weights.put(name + ".in_proj_b" + part, ba[0]);
      weights.put(name + ".in_proj_a" + part, ba[1]);
    }
  }
}

/** One tensor an expert, or Qwen3.5's stacked ones, to ours. */
void gather_experts(const Qwen3NextArgs& args, Weights& weights, const std::string& name) {
  for (std::string matrix : {"gate_proj", "up_proj", "down_proj"}) {
    weights.stack(name + ".experts.{}." + matrix, args.num_experts, name + ".switch_mlp." + matrix);
  }
  if (auto both = weights.pull(name + ".experts.gate_up_proj")) {
    auto halves = mx::split(*both, 2, 1);
    weights.put(name + ".switch_mlp.gate_proj.weight", halves[0]);
    weights.put(name + ".switch_mlp.up_proj.weight", halves[1]);
  }
  if (auto down = weights.pull(name + ".experts.down_proj")) {
    weights.put(name + ".switch_mlp.down_proj.weight", *down);
  }
}

/** Hugging Face's repositories hold a norm's weight - 1. */
void add_one_to_norms(Weights& weights) {
  for (auto* suffix :
       {".input_layernorm.weight",
        ".post_attention_layernorm.weight",
        "model.norm.weight",
        ".q_norm.weight",
        ".k_norm.weight"}) {
    for (auto& name : weights.names_ending(suffix)) {
      auto stored = *weights.pull(name);
      weights.put(name, stored + mx::array(1, stored.dtype()));
    }
  }
}

/** HF's layout of a convolution, [C,1,K], tells a repository of theirs. */
bool is_hf_layout(Weights& weights) {
  bool hf = false;
  for (auto& name : weights.names_ending("conv1d.weight")) {
    auto stored = *weights.pull(name);
    hf = hf || (stored.ndim() == 3 && stored.shape(2) != 1);
    weights.put(name, stored);
  }
  return hf;
}

std::unique_ptr<Model> make(const Config& config, Weights& weights) {
  Qwen3NextArgs args(config);
  for (auto* of_drafts : {"mtp.", "model.mtp.", "language_model.mtp."}) { // heads that draft several tokens
    weights.ignore(of_drafts);
  }
  if (is_hf_layout(weights)) {
    add_one_to_norms(weights);
  }
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    split_projections(args.delta_net, weights, name + ".linear_attn");
    gather_experts(args, weights, name + ".mlp");
  }
  return std::make_unique<Qwen3Next>(args, config, weights);
}

} // namespace

std::unique_ptr<Model> make_qwen3_next(const Config& config, Weights& weights) {
  auto completed = config; // mlx-lm's defaults
  completed.json.emplace("norm_topk_prob", false);
  return make(completed, weights);
}

std::unique_ptr<Model> make_qwen3_5(const Config& config, Weights& weights) {
  auto text = config.has("text_config") ? config.object("text_config") : config;
  if (!text.has("rope_parameters")) {
    text.json["rope_parameters"] = {{"rope_theta", 100000.0}};
  }
  auto& rope = text.json["rope_parameters"].as_object();
  rope.emplace("partial_rotary_factor", 0.25);
  rope.emplace("rope_theta", 100000.0);
  for (auto* of_images : {"vision_tower.", "model.visual.", "visual."}) {
    weights.ignore(of_images);
  }
  weights.rename("model.language_model.", "model.");
  weights.rename("language_model.model.", "model.");
  weights.rename("language_model.lm_head.", "lm_head.");
  return make(text, weights);
}

} // namespace parallm
