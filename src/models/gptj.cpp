// GPT-J (Wang and Komatsuzaki, 2021): attention and a plain feed-forward part side
// by side after one layer norm, pairs of neighbours rotated.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_gptj(const Config& given, Weights& weights) {
  auto config = with_names(
      given,
      {{"hidden_size", "n_embd"},
       {"num_hidden_layers", "n_layer"},
       {"num_attention_heads", "n_head"},
       {"intermediate_size", "n_inner"}});
  config = with_defaults(config, {{"intermediate_size", 4 * config.count("hidden_size")}});
  require_off(config, "tie_word_embeddings");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("layer_norm_epsilon", 1e-5);
  auto act = activation(config.text("activation_function", "gelu_new"));
  weights.rename("transformer.", "model.");
  auto model = std::make_unique<Decoder>(weights, "model.wte", sizes);
  auto* rope = model->keep(plain_rope(config.count("rotary_dim", sizes.head_dim), 10000, true));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.h.{}", i);
    weights.ignore(name + ".attn.bias"); // the causal mask
    weights.ignore(name + ".attn.masked_bias");
    LayerNorm norm(weights, name + ".ln_1", dims, eps, true);
    SelfAttention attend(
        Projections(weights, name + ".attn", sizes, false, false, {.o = "out_proj"}),
        scaled_attention(sizes.head_dim, rope));
    MLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act, true, {.up = "fc_in", .down = "fc_out"});
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = norm(x);
          return x + attend(h, cache) + mlp(h);
        },
        sizes.cache());
  }
  model->norm = LayerNorm(weights, "model.ln_f", dims, eps, true);
  model->head = Linear(weights, "lm_head", sizes.vocab_size, dims, true);
  return model;
}

} // namespace parallm
