// nanochat (Karpathy): norms without weights everywhere, on q and k too, a squared
// ReLU, capped logits.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

constexpr float eps = 1e-5f;

mx::array normed(const mx::array& x) {
  return rms_norm(x, eps);
}

} // namespace

std::unique_ptr<Model> make_nanochat(const Config& given, Weights& weights) {
  auto config = with_defaults(
      given,
      {{"hidden_size", 1280},
       {"num_hidden_layers", 20},
       {"num_attention_heads", 10},
       {"intermediate_size", 5120},
       {"vocab_size", 65536}});
  require_text(config, "hidden_act", "relu2");
  require_off(config, "tie_word_embeddings");
  Sizes sizes(config);
  auto model = std::make_unique<Decoder>(weights, "transformer.wte", sizes);
  auto backwards = make_rope(config, sizes.head_dim); // nanochat turns the other way
  for (auto& frequency : backwards.inverse_frequencies) {
    frequency = -frequency;
  }
  auto* rope = model->keep(backwards);
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("transformer.h.{}", i);
    Projections project(
        weights, name + ".attn", sizes, false, false, {.q = "c_q", .k = "c_k", .v = "c_v", .o = "c_proj"});
    auto how = scaled_attention(sizes.head_dim, rope);
    MLP mlp(
        weights,
        name + ".mlp",
        sizes.hidden_size,
        sizes.intermediate_size,
        relu_squared,
        false,
        {.up = "c_fc", .down = "c_proj"});
    model->add(
        [=](const mx::array& x, Cache& cache) {
          // A norm without weights is the same before rotation, where mlx-lm has it after.
          auto [q, k, v] = project(normed(x));
          auto h = x + project.out(cache.attend(normed(q), normed(k), v, how));
          return h + mlp(normed(h));
        },
        sizes.cache());
  }
  model->embedded = [](const mx::array& x, Caches&) { return normed(x); };
  model->norm = normed;
  model->head = Linear(weights, "lm_head", sizes.vocab_size, sizes.hidden_size);
  model->scored = [cap = float(config.number("final_logit_softcapping", 15))](const mx::array& x) {
    return softcapped(x, cap);
  };
  return model;
}

} // namespace parallm
