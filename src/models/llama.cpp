// Llama (arXiv 2302.13971, 2307.09288, 2407.21783) and models of its shape:
// Mistral (arXiv 2310.06825), SmolLM, SmolLM3, IQuest-Coder, XVERSE; with other
// biases or pairs of RoPE ERNIE 4.5, Helium, InternLM 3, MiMo (arXiv 2505.07608)
// and Seed-OSS.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

/** `layer_types` says which layers slide; without it Mistral slides in all
 * (transformers' modeling_mistral.py). */
std::vector<int> llama_windows(const Config& config, int layers) {
  bool slides = config.text("model_type") == "mistral" && config.boolean("use_sliding_window", true);
  return slides && !config.has("layer_types") ? same_windows(config, layers) : layer_windows(config, layers);
}

/** Which layers rotate q and k: all, or what SmolLM3's `no_rope_layers` says,
 * where 1 means that a layer does. */
std::vector<int> rotating_layers(const Config& config, int layers) {
  bool some = config.text("model_type") == "smollm3";
  std::vector<int> rotating(layers, 1);
  if (some && config.has("no_rope_layers")) {
    rotating = config.integers("no_rope_layers");
    if (int(rotating.size()) != layers) {
      fail(Kind::invalid, "[llama] 'no_rope_layers' must hold {} numbers; got {}", layers, rotating.size());
    }
  } else if (some) {
    int interval = config.count("no_rope_layer_interval", 4);
    for (int i = interval - 1; i < layers; i += interval) {
      rotating[i] = 0;
    }
  }
  return rotating;
}

} // namespace

std::unique_ptr<Model> make_llama(const Config& config, Weights& weights) {
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-6);
  bool attention_bias = config.boolean("attention_bias", false);
  bool attention_out_bias = config.boolean("attention_out_bias", attention_bias);
  bool mlp_bias = config.boolean("mlp_bias", false);
  auto act = activation(config.text("hidden_act", "silu"));
  auto windows = llama_windows(config, sizes.num_hidden_layers);
  auto rotating = rotating_layers(config, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", sizes.hidden_size, eps),
            SelfAttention(
                Projections(weights, name + ".self_attn", sizes, attention_bias, attention_out_bias),
                scaled_attention(sizes.head_dim, rotating[i] ? rope : nullptr, windows[i])),
            RMSNorm(weights, name + ".post_attention_layernorm", sizes.hidden_size, eps),
            GatedMLP(weights, name + ".mlp", sizes.hidden_size, sizes.intermediate_size, act, mlp_bias)),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", sizes.hidden_size, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, sizes.hidden_size);
  return model;
}

std::unique_ptr<Model> make_ernie4_5(const Config& given, Weights& weights) {
  auto config = with_names(given, {{"attention_bias", "use_bias"}, {"mlp_bias", "use_bias"}});
  return make_llama(with_defaults(config, {{"rope_traditional", true}, {"rope_theta", 500000}}), weights);
}

std::unique_ptr<Model> make_helium(const Config& config, Weights& weights) {
  return make_llama(
      with_defaults(config, {{"rope_traditional", true}, {"attention_out_bias", false}, {"rope_theta", 100000}}),
      weights);
}

std::unique_ptr<Model> make_internlm3(const Config& config, Weights& weights) {
  auto named =
      with_names(config, {{"attention_bias", "qkv_bias"}, {"attention_out_bias", "bias"}, {"mlp_bias", "bias"}});
  return make_llama(named, weights);
}

std::unique_ptr<Model> make_mimo(const Config& config, Weights& weights) {
  require_off(config, "use_sliding_window");
  weights.ignore("model.mtp_layers."); // they draft several tokens
  return make_llama(with_defaults(config, {{"attention_bias", true}, {"attention_out_bias", false}}), weights);
}

} // namespace parallm
