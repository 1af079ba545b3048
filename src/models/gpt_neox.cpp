// GPT-NeoX (arXiv 2204.06745), Pythia (arXiv 2304.01373), Dolly, StableLM alpha:
// layer norms, part of the dims rotated, both halves of a block side by side; q,
// k and v are one layer that holds each head's three together.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

class HeadwiseProjections {
 public:
  HeadwiseProjections(Weights& weights, const std::string& name, const Sizes& sizes, bool bias)
      : heads_(sizes.num_attention_heads),
        head_dim_(sizes.head_dim),
        query_key_value(weights, name + ".query_key_value", 3 * heads_ * head_dim_, sizes.hidden_size, bias),
        dense(weights, name + ".dense", sizes.hidden_size, heads_ * head_dim_, bias) {}

  Heads operator()(const mx::array& x) const {
    auto parts = mx::split(mx::reshape(query_key_value(x), {x.shape(0), heads_, 3 * head_dim_}), 3, 2);
    return {parts[0], parts[1], parts[2]};
  }

  mx::array out(const mx::array& y) const {
    return dense(mx::flatten(y, 1, 2));
  }

 private:
  int heads_;
  int head_dim_;
  Linear query_key_value;
  Linear dense;
};

/** Hugging Face's names to mlx-lm's. */
void to_ours(Weights& weights, int layers) {
  weights.rename("gpt_neox.layers.", "model.h.");
  weights.rename("gpt_neox.", "model.");
  weights.rename("embed_out.", "model.embed_out.");
  for (int i = 0; i < layers; ++i) { // the causal mask and RoPE's table
    for (auto* buffer : {"bias", "masked_bias", "rotary_emb."}) {
      weights.ignore(fmt::format("model.h.{}.attention.{}", i, buffer));
    }
  }
}

} // namespace

std::unique_ptr<Model> make_gpt_neox(const Config& given, Weights& weights) {
  auto config = with_names(given, {{"rope_theta", "rotary_emb_base"}, {"partial_rotary_factor", "rotary_pct"}});
  config =
      with_defaults(config, {{"partial_rotary_factor", 0.25}, {"intermediate_size", 4 * config.count("hidden_size")}});
  require_off(config, "tie_word_embeddings");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("layer_norm_eps", 1e-5);
  bool parallel = config.boolean("use_parallel_residual", true);
  // transformers takes what config.json says, for most the form by erf; mlx-lm the one by tanh.
  auto act = activation(config.text("hidden_act", "gelu"));
  to_ours(weights, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_in", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.h.{}", i);
    LayerNorm first(weights, name + ".input_layernorm", dims, eps, true);
    SelfAttention attend(
        HeadwiseProjections(weights, name + ".attention", sizes, config.boolean("attention_bias", true)),
        scaled_attention(sizes.head_dim, rope));
    LayerNorm second(weights, name + ".post_attention_layernorm", dims, eps, true);
    MLP mlp(
        weights,
        name + ".mlp",
        dims,
        sizes.intermediate_size,
        act,
        true,
        {.up = "dense_h_to_4h", .down = "dense_4h_to_h"});
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = x + attend(first(x), cache);
          return h + mlp(second(parallel ? x : h));
        },
        sizes.cache());
  }
  model->norm = LayerNorm(weights, "model.final_layer_norm", dims, eps, true);
  model->head = Linear(weights, "model.embed_out", sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
