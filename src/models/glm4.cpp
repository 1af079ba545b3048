// GLM-4 (arXiv 2406.12793; model_types glm and glm4): pairs of neighbours are
// rotated, gate and up are one layer; glm4, the later one, has norms after both
// halves of a block too.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

struct GlmArgs : Sizes {
  explicit GlmArgs(const Config& config)
      : Sizes(config),
        rms_norm_eps(config.number("rms_norm_eps", 1e-5)),
        attention_bias(config.boolean("attention_bias", false)),
        act(activation(config.text("hidden_act", "silu"))) {}

  float rms_norm_eps;
  bool attention_bias;
  Activation act;
};

class Glm4Block {
 public:
  Glm4Block(const GlmArgs& args, Weights& weights, const std::string& name, const Rope* rope)
      : self_attn(
            Projections(weights, name + ".self_attn", args, args.attention_bias),
            scaled_attention(args.head_dim, rope)),
        mlp(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps),
        post_self_attn_layernorm(weights, name + ".post_self_attn_layernorm", args.hidden_size, args.rms_norm_eps),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps),
        post_mlp_layernorm(weights, name + ".post_mlp_layernorm", args.hidden_size, args.rms_norm_eps) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = x + post_self_attn_layernorm(self_attn(input_layernorm(x), cache));
    return h + post_mlp_layernorm(mlp(post_attention_layernorm(h)));
  }

 private:
  SelfAttention<> self_attn;
  FusedGatedMLP mlp;
  RMSNorm input_layernorm;
  RMSNorm post_self_attn_layernorm;
  RMSNorm post_attention_layernorm; // before the feed-forward part
  RMSNorm post_mlp_layernorm;
};

/** What both share around their blocks, which `add` puts in. */
template <class Add>
std::unique_ptr<Model> make(const Config& config, Weights& weights, const GlmArgs& args, double partial, Add add) {
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* rope = model->keep(make_rope(config, args.head_dim, {.traditional = true, .partial = partial}));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    add(*model, fmt::format("model.layers.{}", i), rope);
  }
  model->norm = RMSNorm(weights, "model.norm", args.hidden_size, args.rms_norm_eps);
  model->head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  return model;
}

} // namespace

std::unique_ptr<Model> make_glm(const Config& config, Weights& weights) {
  GlmArgs args(config);
  return make(config, weights, args, 1, [&](Decoder& model, const std::string& name, const Rope* rope) {
    model.add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps),
            SelfAttention(
                Projections(weights, name + ".self_attn", args, args.attention_bias),
                scaled_attention(args.head_dim, rope)),
            RMSNorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps),
            FusedGatedMLP(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act)),
        args.cache());
  });
}

std::unique_ptr<Model> make_glm4(const Config& config, Weights& weights) {
  GlmArgs args(config);
  return make(config, weights, args, 0.5, [&](Decoder& model, const std::string& name, const Rope* rope) {
    model.add(Glm4Block(args, weights, name, rope), args.cache());
  });
}

} // namespace parallm
