// Hunyuan's dense models, 0.5B to 7B, and Hunyuan-MT (arXiv 2509.05209): Llama's
// block with norms of q and k in each head, after RoPE.
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <cmath>

namespace parallm {

namespace {

/** RoPE's cos and sin of a step. */
using Tables = std::shared_ptr<std::optional<std::pair<mx::array, mx::array>>>;

std::pair<mx::array, mx::array> tables(const Rope& rope, const mx::array& positions) {
  auto frequencies = mx::array(rope.inverse_frequencies.data(), {1, rope.dims / 2});
  auto angles = mx::expand_dims(mx::astype(positions, mx::float32), 1) * frequencies;
  return {mx::cos(angles), mx::sin(angles)};
}

/** As the norms' weights differ within RoPE's pairs, the layer rotates itself, and the cache does not. */
class NormedRotated {
 public:
  NormedRotated(Weights& weights, const std::string& name, const Sizes& sizes, bool bias, float eps)
      : project_(weights, name, sizes, bias, bias),
        query_layernorm(weights, name + ".query_layernorm", sizes.head_dim, eps),
        key_layernorm(weights, name + ".key_layernorm", sizes.head_dim, eps),
        how_(scaled_attention(sizes.head_dim, nullptr)) {}

  mx::array operator()(const mx::array& x, const Rope& rope, const Tables& tables, Cache& cache) const {
    auto& [cos, sin] = tables->value();
    auto [q, k, v] = project_(x);
    q = query_layernorm(rope.rotate(q, cos, sin));
    k = key_layernorm(rope.rotate(k, cos, sin));
    return project_.out(cache.attend(q, k, v, how_));
  }

 private:
  Projections project_;
  RMSNorm query_layernorm;
  RMSNorm key_layernorm;
  Attention how_;
};

/** NTK-aware: the base grows by alpha, whatever the length. */
Rope alpha_rope(const Config& config, int head_dim) {
  double theta = config.number("rope_theta", 10000), alpha = 1;
  if (config.has("rope_scaling")) {
    auto options = config.object("rope_scaling");
    require_text(options, "type", "dynamic");
    alpha = options.number("alpha");
  }
  return plain_rope(head_dim, theta * std::pow(alpha, head_dim / (head_dim - 2.0)));
}

} // namespace

std::unique_ptr<Model> make_hunyuan_v1_dense(const Config& config, Weights& weights) {
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  bool bias = config.boolean("attention_bias", false);
  auto act = activation(config.text("hidden_act", "silu"));
  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(alpha_rope(config, sizes.head_dim));
  auto turns = std::make_shared<std::optional<std::pair<mx::array, mx::array>>>();
  model->embedded = [=](const mx::array& x, Caches& caches) {
    *turns = tables(*rope, caches.positions());
    return x;
  };
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto attend = [&]() -> Decoder::Block {
      auto part = name + ".self_attn";
      if (!config.boolean("use_qk_norm", true)) {
        return SelfAttention(Projections(weights, part, sizes, bias, bias), scaled_attention(sizes.head_dim, rope));
      }
      NormedRotated attention(weights, part, sizes, bias, eps);
      return [=](const mx::array& x, Cache& cache) { return attention(x, *rope, turns, cache); };
    }();
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act);
    model->add(pre_norm_block(weights, name, dims, eps, attend, mlp), sizes.cache());
  }
  return model;
}

} // namespace parallm
