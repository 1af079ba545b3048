// Gemma 3 (arXiv 2503.19786): norms around both halves of a block, norms on q
// and k, and five sliding layers to each that sees all. `gemma3` is the text
// part of the model that also sees images.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "models/text_part.h"
#include "nn/mlp.h"
#include "nn/norm.h"

#include <cmath>

namespace parallm {

namespace {

struct GemmaArgs : Sizes {
  explicit GemmaArgs(const Config& config)
      : Sizes(config),
        rms_norm_eps(config.number("rms_norm_eps", 1e-6)),
        query_pre_attn_scalar(config.number("query_pre_attn_scalar", 256)),
        windows(layer_windows(
            config,
            num_hidden_layers,
            config.count("sliding_window_pattern", config.count("_sliding_window_pattern", 6)))),
        act(activation(config.text("hidden_activation", "gelu_pytorch_tanh"))) {
    require_off(config, "use_bidirectional_attention");
  }

  float rms_norm_eps;
  float query_pre_attn_scalar;
  std::vector<int> windows;
  Activation act;
};

/** What Google's config.json leaves to transformers' Gemma3TextConfig; mlx-lm's
 * are the same. */
const boost::json::object defaults = {
    {"hidden_size", 1152},
    {"num_hidden_layers", 26},
    {"intermediate_size", 6912},
    {"num_attention_heads", 4},
    {"num_key_value_heads", 1},
    {"head_dim", 256},
    {"sliding_window", 512},
    {"vocab_size", 262144},
    {"rope_theta", 1e6}};

/** The same for the text part of the wrapper, whose defaults are another
 * model's (mlx-lm's models/gemma3.py). */
const boost::json::object wrapped_defaults = {{"num_attention_heads", 8}, {"num_key_value_heads", 4}};

/** x + y; in float16 the models' residuals come near its range. */
mx::array add_clipped(const mx::array& x, const mx::array& y) {
  if (x.dtype() != mx::float16) {
    return x + y;
  }
  auto bound = mx::array(65504.0f);
  auto sum = mx::astype(x, mx::float32) + mx::astype(y, mx::float32);
  return mx::astype(mx::clip(sum, -bound, bound), mx::float16);
}

class Block {
 public:
  Block(const GemmaArgs& args, Weights& weights, const std::string& name, const Rope* rope, int window)
      : self_attn(
            Projections(weights, name + ".self_attn", args),
            RMSNorm(weights, name + ".self_attn.q_norm", args.head_dim, args.rms_norm_eps, 1),
            RMSNorm(weights, name + ".self_attn.k_norm", args.head_dim, args.rms_norm_eps, 1),
            scaled_attention(args.query_pre_attn_scalar, rope, window)),
        mlp(weights, name + ".mlp", args.hidden_size, args.intermediate_size, args.act),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.rms_norm_eps, 1),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.rms_norm_eps, 1),
        pre_feedforward_layernorm(weights, name + ".pre_feedforward_layernorm", args.hidden_size, args.rms_norm_eps, 1),
        post_feedforward_layernorm(
            weights,
            name + ".post_feedforward_layernorm",
            args.hidden_size,
            args.rms_norm_eps,
            1) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = add_clipped(x, post_attention_layernorm(self_attn(input_layernorm(x), cache)));
    return add_clipped(h, post_feedforward_layernorm(mlp(pre_feedforward_layernorm(h))));
  }

 private:
  NormedAttention<> self_attn;
  GatedMLP mlp;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
  RMSNorm pre_feedforward_layernorm;
  RMSNorm post_feedforward_layernorm;
};

} // namespace

std::unique_ptr<Model> make_gemma3_text(const Config& given, Weights& weights) {
  auto config = with_defaults(given, defaults);
  GemmaArgs args(config);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", args);
  auto* full = model->keep(make_rope(config, args.head_dim, {.layer_type = "full_attention"}));
  auto* sliding = model->keep(
      has_rope_of(config, "sliding_attention")
          ? make_rope(config, args.head_dim, {.layer_type = "sliding_attention"})
          : plain_rope(args.head_dim, config.number("rope_local_base_freq", 10000)));
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(Block(args, weights, name, args.windows[i] > 0 ? sliding : full, args.windows[i]), args.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", args.hidden_size, args.rms_norm_eps, 1);
  if (weights.has("lm_head.weight")) {
    model->head = Linear(weights, "lm_head", args.vocab_size, args.hidden_size);
  }
  // In bfloat16, as the models were trained.
  auto scale = mx::array(std::sqrt(float(args.hidden_size)), mx::bfloat16);
  model->embedded = [scale](const mx::array& x, Caches&) { return x * mx::astype(scale, x.dtype()); };
  if (config.has("final_logit_softcapping")) {
    float cap = config.number("final_logit_softcapping");
    model->scored = [cap](const mx::array& x) { return softcapped(x, cap); };
  }
  return model;
}

std::unique_ptr<Model> make_gemma3(const Config& config, Weights& weights) {
  auto text = with_defaults(
      text_part(
          config,
          weights,
          {"vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."}),
      wrapped_defaults);
  text.json["vocab_size"] = config.count("vocab_size", text.has("vocab_size") ? text.count("vocab_size") : 262208);
  return make_gemma3_text(text, weights);
}

} // namespace parallm
