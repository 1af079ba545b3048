// Falcon-H1 (arXiv 2507.22448): attention and Mamba-2 side by side in each layer.
// Its many factors (muP) are folded into the weights, as mlx-lm's checkpoints have
// them.
#include "models/attention.h"
#include "models/mamba2_layer.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

Mamba2Shape mamba_shape(const Config& config) {
  Mamba2Shape shape{
      .hidden = config.count("hidden_size"),
      .heads = config.count("mamba_n_heads"),
      .head_dim = config.count("mamba_d_head"),
      .state_size = config.count("mamba_d_state"),
      .groups = config.count("mamba_n_groups"),
      .kernel = config.count("mamba_d_conv"),
      .bias = config.boolean("mamba_proj_bias", false),
      .conv_bias = config.boolean("mamba_conv_bias", true)};
  return shape;
}

class MambaMixer {
 public:
  MambaMixer(const Config& config, const Mamba2Shape& shape, Weights& weights, const std::string& name)
      : groups_(shape.groups),
        eps_(config.number("rms_norm_eps", 1e-5)),
        norm_first_(config.boolean("mamba_norm_before_gate", false)),
        layer(shape, weights, name),
        out_proj(weights, name + ".out_proj", shape.hidden, shape.inner(), config.boolean("projectors_bias", false)) {
    if (config.boolean("mamba_rms_norm", false)) {
      norm_ = weights.take(name + ".norm.weight", {shape.inner()}, weights.dtype());
    }
  }

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [y, gate] = layer(x, cache);
    if (norm_ && norm_first_) {
      return out_proj(swiglu(gate, normed(y)));
    }
    auto gated = swiglu(gate, y);
    return out_proj(norm_ ? normed(gated) : gated);
  }

 private:
  /** Over each group, as transformers' modeling_falcon_h1.py; mlx-lm over all. */
  mx::array normed(const mx::array& x) const {
    auto grouped = mx::reshape(x, {x.shape(0), groups_, -1});
    return *norm_ * mx::flatten(rms_norm(grouped, eps_), 1, 2);
  }

  int groups_;
  float eps_;
  bool norm_first_;
  Mamba2Layer layer;
  std::optional<mx::array> norm_; // [inner]
  Linear out_proj;
};

/** Hugging Face's weights, told by their convolutions [C,1,K], times the factors
 * that modeling_falcon_h1.py puts on activations. mlx-lm leaves key_multiplier out,
 * and attention_in_multiplier on v. */
void fold_factors(const Config& config, const Mamba2Shape& shape, Weights& weights, int layers) {
  auto conv = weights.pull("model.layers.0.mamba.conv1d.weight");
  if (!conv) {
    return;
  }
  weights.put("model.layers.0.mamba.conv1d.weight", *conv);
  if (conv->ndim() != 3 || conv->shape(2) <= conv->shape(1)) {
    return;
  }
  const auto fold = [&](const std::string& name, const mx::array& factor) {
    if (auto stored = weights.pull(name + ".weight")) {
      weights.put(name + ".weight", mx::astype(*stored * factor, stored->dtype()));
    }
  };
  const auto number = [&](const char* field) { return mx::array(float(config.number(field, 1))); };
  auto mlp = config.has("mlp_multipliers") ? config.numbers("mlp_multipliers") : std::vector<double>{1, 1};
  auto parts = config.has("ssm_multipliers") ? config.numbers("ssm_multipliers") : std::vector<double>(5, 1);
  int keys = shape.groups * shape.state_size;
  int sizes[] = {shape.inner(), shape.inner(), keys, keys, shape.heads};
  std::vector<mx::array> rows;
  for (int i = 0; i < 5; ++i) {
    rows.push_back(mx::full({sizes[i], 1}, float(parts.at(i))));
  }
  auto in = mx::concatenate(rows, 0) * number("ssm_in_multiplier");
  auto attention_in = number("attention_in_multiplier");
  fold("model.embed_tokens", number("embedding_multiplier"));
  fold("lm_head", number("lm_head_multiplier"));
  for (int i = 0; i < layers; ++i) {
    auto name = fmt::format("model.layers.{}.", i);
    fold(name + "self_attn.q_proj", attention_in);
    fold(name + "self_attn.k_proj", attention_in * number("key_multiplier"));
    fold(name + "self_attn.v_proj", attention_in);
    fold(name + "self_attn.o_proj", number("attention_out_multiplier"));
    fold(name + "mamba.in_proj", in);
    fold(name + "mamba.out_proj", number("ssm_out_multiplier"));
    fold(name + "feed_forward.gate_proj", mx::array(float(mlp.at(0))));
    fold(name + "feed_forward.down_proj", mx::array(float(mlp.at(1))));
  }
}

} // namespace

std::unique_ptr<Model> make_falcon_h1(const Config& config, Weights& weights) {
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  bool attention_bias = config.boolean("attention_bias", false);
  auto act = activation(config.text("hidden_act", "silu"));
  auto shape = mamba_shape(config);
  fold_factors(config, shape, weights, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 1e11}));
  auto cache = sizes.cache();
  cache.states = Mamba2Layer::cache_spec(shape, weights.dtype()).states;
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    RMSNorm before(weights, name + ".input_layernorm", dims, eps);
    MambaMixer mamba(config, shape, weights, name + ".mamba");
    SelfAttention attend(
        Projections(weights, name + ".self_attn", sizes, attention_bias, attention_bias),
        scaled_attention(sizes.head_dim, rope));
    RMSNorm between(weights, name + ".pre_ff_layernorm", dims, eps);
    GatedMLP mlp(
        weights, name + ".feed_forward", dims, sizes.intermediate_size, act, config.boolean("mlp_bias", false));
    model->add(
        [=](const mx::array& x, Cache& c) {
          auto normed = before(x);
          auto h = x + mamba(normed, c) + attend(normed, c);
          return h + mlp(between(h));
        },
        cache);
  }
  model->norm = RMSNorm(weights, "model.final_layernorm", dims, eps);
  model->head = untied_head(with_defaults(config, {{"tie_word_embeddings", true}}), weights, sizes.vocab_size, dims);
  if (!model->head) { // the embedding holds its own factor
    float by = config.number("lm_head_multiplier", 1) / config.number("embedding_multiplier", 1);
    model->scored = [by](const mx::array& x) { return scaled(x, by); };
  }
  return model;
}

} // namespace parallm
