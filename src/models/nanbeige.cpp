// Nanbeige 4 (arXiv 2512.06266): Llama's layers, run several times over with the
// same weights, each time with keys of their own.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_nanbeige(const Config& config, Weights& weights) {
  for (auto* variant : {"enable_double_loop_split", "loop_share_kv", "enable_depth_attention"}) {
    require_off(config, variant);
  }
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  bool attention_bias = config.boolean("attention_bias", false), mlp_bias = config.boolean("mlp_bias", false);
  auto act = activation(config.text("hidden_act", "silu"));
  // Trained with a loss for each loop, it has a weight for each but the last.
  bool weighed = config.has("loop_loss_weights") && !config.numbers("loop_loss_weights").empty();
  int loops = weighed ? config.numbers("loop_loss_weights").size() + 1 : config.count("num_loops", 1);
  bool norms_between = !config.boolean("skip_loop_final_norm", false);

  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  std::vector<Decoder::Block> layers;
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    SelfAttention attend(
        Projections(weights, name + ".self_attn", sizes, attention_bias, attention_bias),
        scaled_attention(sizes.head_dim, rope));
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act, mlp_bias);
    layers.push_back(pre_norm_block(weights, name, dims, eps, attend, mlp));
  }
  for (int loop = 0; loop < loops; ++loop) {
    for (size_t i = 0; i < layers.size(); ++i) {
      bool starts_again = loop > 0 && i == 0 && norms_between;
      model->add(
          [layer = layers[i], norm = model->norm, starts_again](const mx::array& x, Cache& cache) {
            return layer(starts_again ? norm(x) : x, cache);
          },
          sizes.cache());
    }
  }
  return model;
}

} // namespace parallm
