// IBM's Granite 3: Llama's block with factors on the embedding, the scores, the
// residuals and the logits (arXiv 2408.13359 tells where they come from).
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

struct GraniteArgs : Sizes {
  explicit GraniteArgs(const Config& config)
      : Sizes(config),
        rms_norm_eps(config.number("rms_norm_eps", 1e-6)),
        logits_scaling(config.number("logits_scaling", 1)),
        attention_multiplier(config.number("attention_multiplier", 1)),
        embedding_multiplier(config.number("embedding_multiplier", 1)),
        residual_multiplier(config.number("residual_multiplier", 1)),
        attention_bias(config.boolean("attention_bias", false)),
        mlp_bias(config.boolean("mlp_bias", false)),
        act(activation(config.text("hidden_act", "silu"))) {}

  float rms_norm_eps;
  float logits_scaling;
  float attention_multiplier;
  float embedding_multiplier;
  float residual_multiplier;
  bool attention_bias;
  bool mlp_bias;
  Activation act;
};

class Block {
 public:
  Block(const GraniteArgs& args, Weights& weights, const std::string& name, const Rope* rope)
      : residual_multiplier_(args.residual_multiplier),
        self_attn(
            Projections(weights, name + ".self_attn", args, args.attention_bias, args.attention_bias),
            {.scale = args.attention_multiplier, .rope = rope, .sinks = {}}),
        mlp(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act, args.mlp_bias),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = x + scaled(self_attn(input_layernorm(x), cache), residual_multiplier_);
    return h + scaled(mlp(post_attention_layernorm(h)), residual_multiplier_);
  }

 private:
  float residual_multiplier_;
  SelfAttention<> self_attn;
  GatedMLP mlp;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
};

} // namespace

std::unique_ptr<Model> make_granite(const Config& config, Weights& weights) {
  GraniteArgs args(config);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* rope = model->keep(make_rope(config, args.head_dim));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    model->add(Block(args, weights, fmt::format("model.layers.{}", i), rope), args.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", args.hidden_size, args.rms_norm_eps);
  model->head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  model->embedded = [by = args.embedding_multiplier](const mx::array& x, Caches&) { return scaled(x, by); };
  model->scored = [by = 1 / args.logits_scaling](const mx::array& x) { return scaled(x, by); };
  return model;
}

} // namespace parallm
