// Talkie (2026): norms without weights, gains on what each half of a block adds,
// and the normed embedding added once more after each block.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

/** A learned number on all of x. */
class Gain {
 public:
  Gain(Weights& weights, const std::string& name) : value_(weights.take(name, {1}, weights.dtype())) {}

  mx::array operator()(const mx::array& x) const {
    return x * value_;
  }

 private:
  mx::array value_;
};

/** q and k are normed, which is the same before RoPE as behind it, and q has a gain a head. */
class GainedAttention {
 public:
  GainedAttention(Weights& weights, const std::string& name, const Sizes& sizes, float eps, const Rope* rope)
      : eps_(eps),
        how_(scaled_attention(sizes.head_dim, rope)),
        project_(
            weights,
            name,
            sizes,
            false,
            false,
            {.q = "attn_query", .k = "attn_key", .v = "attn_value", .o = "attn_resid"}),
        gains_(mx::expand_dims(
            weights.take(name + ".head_gain.head_g", {sizes.num_attention_heads}, weights.dtype()),
            1)) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project_(x);
    return project_.out(cache.attend(rms_norm(q, eps_) * gains_, rms_norm(k, eps_), v, how_));
  }

 private:
  float eps_;
  Attention how_;
  Projections project_;
  mx::array gains_; // [H,1]
};

/** Turned the other way round than others'. */
Rope backward_rope(int dims, double theta) {
  auto rope = plain_rope(dims, theta);
  for (auto& frequency : rope.inverse_frequencies) {
    frequency = -frequency;
  }
  return rope;
}

} // namespace

std::unique_ptr<Model> make_talkie(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"head_dim", 128}});
  for (auto* table : {"cos", "sin"}) {
    for (auto& name : weights.names_ending(table)) {
      weights.ignore(name);
    }
  }
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1.1920928955078125e-07);
  auto normed = [eps](const mx::array& x) { return rms_norm(x, eps); };
  auto model = std::make_unique<Decoder>(weights, "model.embed", sizes);
  auto first = std::make_shared<std::optional<mx::array>>(); // the normed embedding
  model->embedded = [=](const mx::array& x, Caches&) {
    *first = normed(x);
    return first->value();
  };
  auto* rope = model->keep(backward_rope(sizes.head_dim, config.number("rope_theta", 1e6)));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.blocks.{}", i);
    GainedAttention attend(weights, name + ".attn", sizes, eps, rope);
    GatedMLP mlp(
        weights,
        name + ".mlp",
        dims,
        sizes.intermediate_size,
        silu,
        false,
        {.gate = "mlp_gate", .up = "mlp_linear", .down = "mlp_resid"});
    Gain attn_gain(weights, name + ".attn_gain.a_g");
    Gain mlp_gain(weights, name + ".mlp_gain.a_g");
    Gain embed_skip(weights, name + ".embed_skip.a_g");
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = x + attn_gain(attend(normed(x), cache));
          h = h + mlp_gain(mlp(normed(h)));
          return h + embed_skip(first->value());
        },
        sizes.cache());
  }
  model->norm = normed;
  // A bare tensor in checkpoints, never quantized.
  Weights head({{"head.weight", weights.take("lm_head", {sizes.vocab_size, dims})}}, {}, weights.dtype());
  model->head = Linear(head, "head", sizes.vocab_size, dims);
  model->scored = Gain(weights, "lm_head_gain.w_g");
  return model;
}

} // namespace parallm
