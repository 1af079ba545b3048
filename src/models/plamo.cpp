// PLaMo (Preferred Networks, 2023): attention and feed-forward part side by side
// after one norm; query heads take the kv heads in turn.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

/** x [T,outer*inner,D] by heads in the order [inner][outer]. */
mx::array to_groups(const mx::array& x, int outer, int inner) {
  auto apart = mx::reshape(x, {x.shape(0), outer, inner, x.shape(2)});
  return mx::reshape(mx::swapaxes(apart, 1, 2), x.shape());
}

} // namespace

std::unique_ptr<Model> make_plamo(const Config& given, Weights& weights) {
  auto config = given;
  int heads = config.count("num_attention_heads"), shared = config.count("n_shared_head", 8);
  if (heads % shared != 0) {
    fail(
        Kind::invalid,
        "[{}] 'num_attention_heads' must be a multiple of 'n_shared_head'; got {} and {}",
        config.where,
        heads,
        shared);
  }
  int kv_heads = heads / shared;
  config.json["num_key_value_heads"] = kv_heads;
  require_off(config, "tie_word_embeddings");
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  auto act = activation(config.text("hidden_act", "silu"));
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.layers.{}", i);
    RMSNorm norm(weights, name + ".norm", dims, eps);
    Projections project(weights, name + ".self_attn", sizes);
    auto how = scaled_attention(sizes.head_dim, rope);
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act);
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto normed = norm(x);
          auto [q, k, v] = project(normed);
          auto y = cache.attend(to_groups(q, shared, kv_heads), k, v, how);
          return x + project.out(to_groups(y, kv_heads, shared)) + mlp(normed);
        },
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = Linear(weights, "lm_head", sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
