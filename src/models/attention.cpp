#include "models/attention.h"

#include <cmath>

namespace parallm {

Projections::Projections(
    Weights& weights,
    const std::string& name,
    const Sizes& sizes,
    bool qkv_bias,
    bool o_bias,
    const ProjectionNames& names)
    : heads_(sizes.num_attention_heads),
      kv_heads_(sizes.num_key_value_heads),
      head_dim_(sizes.head_dim),
      q_proj(weights, name + "." + names.q, heads_ * head_dim_, sizes.hidden_size, qkv_bias),
      k_proj(weights, name + "." + names.k, kv_heads_ * head_dim_, sizes.hidden_size, qkv_bias),
      v_proj(weights, name + "." + names.v, kv_heads_ * head_dim_, sizes.hidden_size, qkv_bias),
      o_proj(weights, name + "." + names.o, sizes.hidden_size, heads_ * head_dim_, o_bias) {}

Heads Projections::operator()(const mx::array& x) const {
  int count = x.shape(0);
  mx::Shape queries{count, heads_, head_dim_}, keys{count, kv_heads_, head_dim_};
  auto all = apply_each({&q_proj, &k_proj, &v_proj}, x, {queries, keys, keys});
  return {all[0], all[1], all[2]};
}

mx::array Projections::out(const mx::array& y) const {
  return o_proj(y);
}

FusedProjections::FusedProjections(
    Weights& weights,
    const std::string& name,
    const Sizes& sizes,
    bool qkv_bias,
    bool o_bias,
    const ProjectionNames& names)
    : heads_(sizes.num_attention_heads),
      kv_heads_(sizes.num_key_value_heads),
      head_dim_(sizes.head_dim),
      qkv_proj(weights, name + "." + names.qkv, (heads_ + 2 * kv_heads_) * head_dim_, sizes.hidden_size, qkv_bias),
      o_proj(weights, name + "." + names.o, sizes.hidden_size, heads_ * head_dim_, o_bias) {}

Heads FusedProjections::operator()(const mx::array& x) const {
  auto all = mx::reshape(qkv_proj(x), {x.shape(0), heads_ + 2 * kv_heads_, head_dim_});
  auto parts = mx::split(all, mx::Shape{heads_, heads_ + kv_heads_}, 1);
  return {parts[0], parts[1], parts[2]};
}

mx::array FusedProjections::out(const mx::array& y) const {
  return o_proj(y);
}

Attention scaled_attention(float dims, const Rope* rope, int window) {
  return {.scale = 1 / std::sqrt(dims), .rope = rope, .window = window, .sinks = {}};
}

} // namespace parallm
