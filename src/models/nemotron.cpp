// Nemotron-4 and Minitron (arXiv 2402.16819, 2407.14679): layer norms whose
// weights are stored less one, a squared ReLU, part of the dims rotated.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

class LayerNorm1P {
 public:
  LayerNorm1P(Weights& weights, const std::string& name, int dims, float eps)
      : weight_(weights.take(name + ".weight", {dims}, weights.dtype())),
        bias_(weights.take(name + ".bias", {dims}, weights.dtype())),
        eps_(eps) {}

  mx::array operator()(const mx::array& x) const {
    return mx::fast::layer_norm(x, weight_ + mx::array(1, weight_.dtype()), bias_, eps_);
  }

 private:
  mx::array weight_;
  mx::array bias_;
  float eps_;
};

} // namespace

std::unique_ptr<Model> make_nemotron(const Config& config, Weights& weights) {
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("norm_eps", 1e-5);
  bool attention_bias = config.boolean("attention_bias", false);
  bool mlp_bias = config.boolean("mlp_bias", false);
  auto act = activation(config.text("hidden_act", "relu2"));
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.partial = 0.5}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    model->add(
        PreNormBlock(
            LayerNorm1P(weights, name + ".input_layernorm", dims, eps),
            SelfAttention(
                Projections(weights, name + ".self_attn", sizes, attention_bias, attention_bias),
                scaled_attention(sizes.head_dim, rope)),
            LayerNorm1P(weights, name + ".post_attention_layernorm", dims, eps),
            MLP(weights, name + ".mlp", dims, sizes.intermediate_size, act, mlp_bias, {})),
        sizes.cache());
  }
  model->norm = LayerNorm1P(weights, "model.norm", dims, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
