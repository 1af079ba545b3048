// BitNet b1.58 (arXiv 2402.17764, 2504.12285): Llama's block with a norm before
// each half's last layer, relu squared, and weights of -1, 0 and 1. Activations
// aren't rounded to 8 bits (mlx-lm doesn't either).
#include "models/attention.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/activation.h"

namespace parallm {

namespace {

class NormedMLP {
 public:
  NormedMLP(Weights& weights, const std::string& name, const Sizes& sizes, float eps, Activation act, bool bias)
      : act_(act),
        gate_proj(weights, name + ".gate_proj", sizes.intermediate_size, sizes.hidden_size, bias),
        up_proj(weights, name + ".up_proj", sizes.intermediate_size, sizes.hidden_size, bias),
        ffn_sub_norm(weights, name + ".ffn_sub_norm", sizes.intermediate_size, eps),
        down_proj(weights, name + ".down_proj", sizes.hidden_size, sizes.intermediate_size, bias) {}

  mx::array operator()(const mx::array& x) const {
    return down_proj(ffn_sub_norm(gated(act_, gate_proj(x), up_proj(x))));
  }

 private:
  Activation act_;
  Linear gate_proj;
  Linear up_proj;
  RMSNorm ffn_sub_norm;
  Linear down_proj;
};

} // namespace

std::unique_ptr<Model> make_bitnet(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"tie_word_embeddings", true}});
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  bool attention_bias = config.boolean("attention_bias", false), mlp_bias = config.boolean("mlp_bias", false);
  auto act = activation(config.text("hidden_act", "relu2"));
  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    Projections project(weights, name + ".self_attn", sizes, attention_bias, attention_bias);
    RMSNorm sub_norm(weights, name + ".self_attn.attn_sub_norm", sizes.num_attention_heads * sizes.head_dim, eps);
    auto how = scaled_attention(sizes.head_dim, rope);
    auto attend = [=](const mx::array& x, Cache& cache) {
      auto [q, k, v] = project(x);
      return project.out(sub_norm(mx::flatten(cache.attend(q, k, v, how), 1, 2)));
    };
    NormedMLP mlp(weights, name + ".mlp", sizes, eps, act, mlp_bias);
    model->add(pre_norm_block(weights, name, dims, eps, attend, mlp), sizes.cache());
  }
  return model;
}

} // namespace parallm
