// StableLM 2 and StableLM 3B (arXiv 2402.17834): layer norms, a quarter of the
// dims rotated; the 12B has norms on the heads of q and k and both halves of a
// block side by side.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

struct StableLMArgs : Sizes {
  explicit StableLMArgs(const Config& config)
      : Sizes(config),
        layer_norm_eps(config.number("layer_norm_eps", 1e-5)),
        use_qkv_bias(config.boolean("use_qkv_bias", false)),
        use_parallel_residual(config.boolean("use_parallel_residual", false)),
        qk_layernorm(config.boolean("qk_layernorm", false)),
        act(activation(config.text("hidden_act", "silu"))) {}

  float layer_norm_eps;
  bool use_qkv_bias;
  bool use_parallel_residual;
  bool qk_layernorm;
  Activation act;
};

/** A layer norm a head, each its own tensor. */
class HeadNorms {
 public:
  HeadNorms(Weights& weights, const std::string& name, int heads, int head_dim, float eps) : eps_(eps) {
    std::vector<mx::array> norms;
    for (int i = 0; i < heads; ++i) {
      norms.push_back(weights.take(fmt::format("{}.norms.{}.weight", name, i), {head_dim}, weights.dtype()));
    }
    weight_ = mx::stack(norms);
  }

  mx::array operator()(const mx::array& x) const {
    return weight_ * mx::fast::layer_norm(x, {}, {}, eps_);
  }

 private:
  mx::array weight_ = mx::array(0); // [heads, head_dim]
  float eps_;
};

class Block {
 public:
  Block(const StableLMArgs& args, Weights& weights, const std::string& name, const Rope* rope)
      : project(weights, name + ".self_attn", args, args.use_qkv_bias),
        how_(scaled_attention(args.head_dim, rope)),
        mlp(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.layer_norm_eps, true) {
    auto part = name + ".self_attn.";
    if (args.qk_layernorm) {
      q_norm.emplace(weights, part + "q_layernorm", args.num_attention_heads, args.head_dim, args.layer_norm_eps);
      k_norm.emplace(weights, part + "k_layernorm", args.num_key_value_heads, args.head_dim, args.layer_norm_eps);
    }
    if (!args.use_parallel_residual) {
      post_attention_layernorm.emplace(
          weights, name + ".post_attention_layernorm", args.hidden_size, args.layer_norm_eps, true);
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto normed = input_layernorm(x);
    auto h = x + self_attn(normed, cache);
    return h + mlp(post_attention_layernorm ? (*post_attention_layernorm)(h) : normed);
  }

 private:
  mx::array self_attn(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project(x);
    return project.out(cache.attend(q_norm ? (*q_norm)(q) : q, k_norm ? (*k_norm)(k) : k, v, how_));
  }

  Projections project;
  std::optional<HeadNorms> q_norm;
  std::optional<HeadNorms> k_norm;
  Attention how_;
  GatedMLP mlp;
  LayerNorm input_layernorm;
  std::optional<LayerNorm> post_attention_layernorm; // nothing: side by side
};

} // namespace

std::unique_ptr<Model> make_stablelm(const Config& config, Weights& weights) {
  StableLMArgs args(config);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* rope = model->keep(make_rope(config, args.head_dim, {.partial = 0.25}));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    model->add(Block(args, weights, fmt::format("model.layers.{}", i), rope), args.cache());
  }
  model->norm = LayerNorm(weights, "model.norm", args.hidden_size, args.layer_norm_eps, true);
  model->head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  return model;
}

} // namespace parallm
