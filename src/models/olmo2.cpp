// OLMo 2 and OLMo 3 (arXiv 2501.00656): norms after both halves of a block
// instead of before, and over all of q and k. OLMo 3 slides in three layers of
// four, where its rope is not scaled.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

struct OlmoArgs : Sizes {
  explicit OlmoArgs(const Config& config)
      : Sizes(config),
        rms_norm_eps(config.number("rms_norm_eps", 1e-5)),
        attention_bias(config.boolean("attention_bias", false)),
        act(activation(config.text("hidden_act", "silu"))) {}

  float rms_norm_eps;
  bool attention_bias;
  Activation act;
};

/** A norm over all heads together. */
mx::array norm_all(const RMSNorm& norm, const mx::array& x) {
  return mx::reshape(norm(mx::flatten(x, 1, 2)), x.shape());
}

class Block {
 public:
  Block(const OlmoArgs& args, Weights& weights, const std::string& name, const Attention& how)
      : project(weights, name + ".self_attn", args, args.attention_bias, args.attention_bias),
        q_norm(weights, name + ".self_attn.q_norm", args.num_attention_heads * args.head_dim, args.rms_norm_eps),
        k_norm(weights, name + ".self_attn.k_norm", args.num_key_value_heads * args.head_dim, args.rms_norm_eps),
        how_(how),
        mlp(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps),
        post_feedforward_layernorm(weights, name + ".post_feedforward_layernorm", args.hidden_size, args.rms_norm_eps) {
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = x + post_attention_layernorm(self_attn(x, cache));
    return h + post_feedforward_layernorm(mlp(h));
  }

 private:
  mx::array self_attn(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project(x);
    return project.out(cache.attend(norm_all(q_norm, q), norm_all(k_norm, k), v, how_));
  }

  Projections project;
  RMSNorm q_norm;
  RMSNorm k_norm;
  Attention how_;
  GatedMLP mlp;
  RMSNorm post_attention_layernorm;
  RMSNorm post_feedforward_layernorm;
};

std::unique_ptr<Model> make(const Config& config, Weights& weights, const std::vector<int>& windows) {
  OlmoArgs args(config);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* full = model->keep(make_rope(config, args.head_dim, {.layer_type = "full_attention"}));
  auto* sliding = model->keep(
      has_rope_of(config, "sliding_attention") ? make_rope(config, args.head_dim, {.layer_type = "sliding_attention"})
                                               : plain_rope(args.head_dim, full->base));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto how = scaled_attention(args.head_dim, windows[i] > 0 ? sliding : full, windows[i]);
    model->add(Block(args, weights, fmt::format("model.layers.{}", i), how), args.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", args.hidden_size, args.rms_norm_eps);
  model->head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  return model;
}

} // namespace

std::unique_ptr<Model> make_olmo2(const Config& config, Weights& weights) {
  return make(config, weights, std::vector<int>(config.count("num_hidden_layers"), 0));
}

std::unique_ptr<Model> make_olmo3(const Config& config, Weights& weights) {
  return make(config, weights, layer_windows(config, config.count("num_hidden_layers"), 4));
}

} // namespace parallm
