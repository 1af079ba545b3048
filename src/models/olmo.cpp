// The first OLMo (arXiv 2402.00838), as its own library stores it: layer norms
// without weights, q, k and v as one layer, the gate behind what it gates.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

class UpGateMLP {
 public:
  UpGateMLP(Weights& weights, const std::string& name, int dims, int both)
      : ff_proj(weights, name + ".ff_proj", both, dims), ff_out(weights, name + ".ff_out", dims, both / 2) {}

  mx::array operator()(const mx::array& x) const {
    auto parts = mx::split(ff_proj(x), 2, 1);
    return ff_out(swiglu(parts[1], parts[0]));
  }

 private:
  Linear ff_proj; // what is gated, then the gate
  Linear ff_out;
};

} // namespace

std::unique_ptr<Model> make_olmo(const Config& given, Weights& weights) {
  auto config = with_names(
      given, {{"hidden_size", "d_model"}, {"num_hidden_layers", "n_layers"}, {"num_attention_heads", "n_heads"}});
  require_text(config, "layer_norm_type", "default");
  require_text(config, "activation_type", "swiglu");
  for (auto* variant : {"alibi", "attention_layer_norm", "include_bias", "layer_norm_with_affine"}) {
    require_off(config, variant);
  }
  config.json["intermediate_size"] =
      config.count("mlp_hidden_size", config.count("mlp_ratio", 4) * config.count("hidden_size"));
  config.json["vocab_size"] = config.count("embedding_size", config.count("vocab_size"));
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = 1e-5f;
  std::string root = "model.transformer.";
  auto model = std::make_unique<Decoder>(weights, root + "wte", sizes);
  auto* rope = model->keep(
      plain_rope(sizes.head_dim, config.number("rope_theta", 10000), config.boolean("rope_traditional", false)));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("{}blocks.{}", root, i);
    model->add(
        PreNormBlock(
            LayerNorm(weights, name + ".att_norm", dims, eps, false, false),
            SelfAttention(
                FusedProjections(weights, name, sizes, false, false, {.o = "attn_out", .qkv = "att_proj"}),
                scaled_attention(sizes.head_dim, rope)),
            LayerNorm(weights, name + ".ff_norm", dims, eps, false, false),
            UpGateMLP(weights, name, dims, sizes.intermediate_size)),
        sizes.cache());
  }
  model->norm = LayerNorm(weights, root + "norm", dims, eps, false, false);
  if (!config.boolean("weight_tying", false)) {
    model->head = Linear(weights, root + "ff_out", sizes.vocab_size, dims);
  }
  return model;
}

} // namespace parallm
