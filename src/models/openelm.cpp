// OpenELM (arXiv 2404.14619): norms of q and k in each head; each layer has its own
// number of heads and its own width.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/activation.h"

#include <algorithm>

namespace parallm {

namespace {

/** The multiple of `divisor` nearest to v, but not less than nine tenths of it. */
int divisible(double v, int divisor) {
  int near = std::max(divisor, int(v + divisor / 2.0) / divisor * divisor);
  return near < 0.9 * v ? near + divisor : near;
}

/** Gates, then ups, in one layer. */
class FusedFeedForward {
 public:
  FusedFeedForward(Weights& weights, const std::string& name, int dims, int hidden)
      : proj_1(weights, name + ".proj_1", 2 * hidden, dims), proj_2(weights, name + ".proj_2", dims, hidden) {}

  mx::array operator()(const mx::array& x) const {
    auto parts = mx::split(proj_1(x), 2, 1);
    return proj_2(swiglu(parts[0], parts[1]));
  }

 private:
  Linear proj_1;
  Linear proj_2;
};

} // namespace

std::unique_ptr<Model> make_openelm(const Config& given, Weights& weights) {
  auto config = with_names(
      given,
      {{"hidden_size", "model_dim"},
       {"num_hidden_layers", "num_transformer_layers"},
       {"rope_theta", "rope_freq_constant"},
       {"tie_word_embeddings", "share_input_output_layers"}});
  if (!config.boolean("ffn_with_glu", true)) {
    fail(Kind::invalid, "[{}] 'ffn_with_glu' must be true; got false", config.where);
  }
  require_text(config, "activation_fn_name", "swish");
  auto heads = config.integers("num_query_heads"), kv_heads = config.integers("num_kv_heads");
  auto widths = config.numbers("ffn_multipliers");
  config.json["num_attention_heads"] = 1; // the layers' own count
  config.json["intermediate_size"] = 1;
  Sizes sizes(config);
  int dims = sizes.hidden_size, layers = sizes.num_hidden_layers;
  for (auto* field : {"num_query_heads", "num_kv_heads", "ffn_multipliers"}) {
    int count = config.numbers(field).size();
    if (count != layers) {
      fail(Kind::invalid, "[{}] '{}' must hold {} numbers; got {}", config.where, field, layers, count);
    }
  }
  float eps = config.number("rms_norm_eps", 1e-6);
  auto model = std::make_unique<Decoder>(weights, "transformer.token_embeddings", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < layers; ++i) {
    auto name = fmt::format("transformer.layers.{}", i);
    sizes.num_attention_heads = heads[i];
    sizes.num_key_value_heads = kv_heads[i];
    FusedProjections project(weights, name + ".attn", sizes, false, false, {.o = "out_proj"});
    auto how = scaled_attention(sizes.head_dim, rope);
    auto attend = [&]() -> Decoder::Block {
      if (!config.boolean("normalize_qk_projections", true)) {
        return SelfAttention(project, how);
      }
      RMSNorm q_norm(weights, name + ".attn.q_norm", sizes.head_dim, eps);
      RMSNorm k_norm(weights, name + ".attn.k_norm", sizes.head_dim, eps);
      return NormedAttention(project, q_norm, k_norm, how);
    }();
    int hidden = divisible(widths[i] * dims, config.count("ffn_dim_divisor", 256));
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".attn_norm", dims, eps),
            attend,
            RMSNorm(weights, name + ".ffn_norm", dims, eps),
            FusedFeedForward(weights, name + ".ffn", dims, hidden)),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "transformer.norm", dims, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
