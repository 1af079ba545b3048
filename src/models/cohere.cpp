// Cohere's Command R, Command R+ and Aya (model_type cohere), Command R7B and
// Command A (cohere2, arXiv 2504.00698): attention and feed-forward part side by
// side after one layer norm; cohere2 slides in three layers of four, and the
// fourth has no positions.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

struct CohereArgs : Sizes {
  explicit CohereArgs(const Config& config)
      : Sizes(config),
        layer_norm_eps(config.number("layer_norm_eps", 1e-5)),
        logit_scale(config.number("logit_scale", 0.0625)),
        attention_bias(config.boolean("attention_bias", false)),
        layer_norm_bias(config.boolean("layer_norm_bias", false)),
        use_qk_norm(config.boolean("use_qk_norm", false)),
        act(activation(config.text("hidden_act", "silu"))) {}

  float layer_norm_eps;
  float logit_scale;
  bool attention_bias;
  bool layer_norm_bias;
  bool use_qk_norm;
  Activation act;
};

/** A layer norm over each head, whose weights [heads, head_dim] are the head's
 * own. */
class HeadNorm {
 public:
  HeadNorm(Weights& weights, const std::string& name, int heads, int head_dim, float eps)
      : weight_(weights.take(name + ".weight", {heads, head_dim}, weights.dtype())), eps_(eps) {}

  mx::array operator()(const mx::array& x) const {
    return weight_ * mx::fast::layer_norm(x, {}, {}, eps_);
  }

 private:
  mx::array weight_;
  float eps_;
};

class Block {
 public:
  Block(const CohereArgs& args, Weights& weights, const std::string& name, const Attention& how)
      : project(weights, name + ".self_attn", args, args.attention_bias, args.attention_bias),
        how_(how),
        mlp(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act),
        input_layernorm(
            weights,
            name + ".input_layernorm",
            args.hidden_size,
            args.layer_norm_eps,
            args.layer_norm_bias) {
    if (args.use_qk_norm) {
      auto part = name + ".self_attn.";
      q_norm.emplace(weights, part + "q_norm", args.num_attention_heads, args.head_dim, args.layer_norm_eps);
      k_norm.emplace(weights, part + "k_norm", args.num_key_value_heads, args.head_dim, args.layer_norm_eps);
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = input_layernorm(x);
    auto [q, k, v] = project(h);
    auto attended = cache.attend(q_norm ? (*q_norm)(q) : q, k_norm ? (*k_norm)(k) : k, v, how_);
    return project.out(attended) + mlp(h) + x;
  }

 private:
  Projections project;
  std::optional<HeadNorm> q_norm;
  std::optional<HeadNorm> k_norm;
  Attention how_;
  GatedMLP mlp;
  LayerNorm input_layernorm;
};

std::unique_ptr<Model> make(
    const Config& config,
    Weights& weights,
    const CohereArgs& args,
    const std::vector<int>& windows,
    bool global_rotates) {
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* rope = model->keep(make_rope(config, args.head_dim, {.traditional = true}));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    bool rotates = global_rotates || windows[i] > 0;
    auto how = scaled_attention(args.head_dim, rotates ? rope : nullptr, windows[i]);
    model->add(Block(args, weights, fmt::format("model.layers.{}", i), how), args.cache());
  }
  model->norm = LayerNorm(weights, "model.norm", args.hidden_size, args.layer_norm_eps, args.layer_norm_bias);
  weights.ignore("lm_head."); // tied, whatever the file holds
  model->scored = [scale = args.logit_scale](const mx::array& x) { return scaled(x, scale); };
  return model;
}

} // namespace

std::unique_ptr<Model> make_cohere(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"rope_theta", 8e6}});
  CohereArgs args(config);
  return make(config, weights, args, std::vector<int>(args.num_hidden_layers, 0), true);
}

std::unique_ptr<Model> make_cohere2(const Config& given, Weights& weights) {
  auto config = with_defaults(
      given, {{"rope_theta", 50000}, {"head_dim", 128}, {"num_key_value_heads", 8}, {"sliding_window", 4096}});
  CohereArgs args(config);
  auto pattern = config.count("sliding_window_pattern", 4);
  return make(config, weights, args, layer_windows(config, args.num_hidden_layers, pattern), false);
}

} // namespace parallm
