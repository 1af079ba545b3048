// IBM's Granite 3: Llama's block with factors on the embedding, the scores, the
// residuals and the logits (arXiv 2408.13359 tells where they come from); and
// Granite 3 MoE, with experts for its feed-forward part.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/moe.h"

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
  Block(const GraniteArgs& args, Weights& weights, const std::string& name, const Rope* rope, Decoder::Map feed_forward)
      : residual_multiplier_(args.residual_multiplier),
        self_attn(
            Projections(weights, name + ".self_attn", args, args.attention_bias, args.attention_bias),
            {.scale = args.attention_multiplier, .rope = rope, .sinks = {}}),
        feed_forward_(std::move(feed_forward)),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = x + scaled(self_attn(input_layernorm(x), cache), residual_multiplier_);
    return h + scaled(feed_forward_(post_attention_layernorm(h)), residual_multiplier_);
  }

 private:
  float residual_multiplier_;
  SelfAttention<> self_attn;
  Decoder::Map feed_forward_;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
};

using MakeFeed = std::function<Decoder::Map(const std::string& name)>;

std::unique_ptr<Model>
make(const Config& config, const GraniteArgs& args, Weights& weights, const MakeFeed& make_feed_forward) {
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* rope = model->keep(make_rope(config, args.head_dim));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(Block(args, weights, name, rope, make_feed_forward(name)), args.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", args.hidden_size, args.rms_norm_eps);
  model->head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  model->embedded = [by = args.embedding_multiplier](const mx::array& x, Caches&) { return scaled(x, by); };
  model->scored = [by = 1 / args.logits_scaling](const mx::array& x) { return scaled(x, by); };
  return model;
}

} // namespace

std::unique_ptr<Model> make_granite(const Config& config, Weights& weights) {
  GraniteArgs args(config);
  return make(config, args, weights, [&](const std::string& name) {
    return GatedMLP(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act, args.mlp_bias);
  });
}

std::unique_ptr<Model> make_granitemoe(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  GraniteArgs args(config);
  int experts = config.count("num_local_experts"), choices = config.count("num_experts_per_tok");
  auto choose = [choices](const mx::array& logits) { return choose_then_softmax(logits, choices); };
  return make(config, args, weights, [&](const std::string& name) {
    auto moe = name + ".block_sparse_moe", stacked = moe + ".switch_mlp";
    split_gate_up(weights, moe + ".input_linear.weight", stacked, false);
    weights.rename(moe + ".output_linear.", stacked + ".down_proj.");
    return SparseMoe(
        weights, moe + ".router.layer", stacked, experts, args.hidden_size, args.intermediate_size, choose);
  });
}

} // namespace parallm
