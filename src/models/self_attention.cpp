#include "models/self_attention.h"

#include "base/error.h"

#include <cmath>

namespace parallm {

SelfAttentionArgs::SelfAttentionArgs(const Config& config)
    : dims(config.count("hidden_size")),
      heads(config.count("num_attention_heads")),
      kv_heads(config.count("num_key_value_heads", heads)),
      head_dim(config.count("head_dim", std::max(dims / heads, 1))) {
  if (heads % kv_heads != 0) {
    fail(
        Kind::invalid,
        "[{}] 'num_attention_heads' must be a multiple of 'num_key_value_heads'; got {} and {}",
        config.where,
        heads,
        kv_heads);
  }
}

SelfAttention::SelfAttention(const SelfAttentionArgs& args, Weights& weights, const std::string& name)
    : args_(args),
      how_{
          .scale = args.scale.value_or(1 / std::sqrt(float(args.head_dim))),
          .rope = args.rope.get(),
          .window = args.window,
          .sinks = {}},
      q_proj(weights, name + ".q_proj", args.heads * args.head_dim, args.dims, args.bias),
      k_proj(weights, name + ".k_proj", args.kv_heads * args.head_dim, args.dims, args.bias),
      v_proj(weights, name + ".v_proj", args.kv_heads * args.head_dim, args.dims, args.bias),
      o_proj(weights, name + ".o_proj", args.dims, args.heads * args.head_dim, args.output_bias) {
  if (args.norms != HeadNorms::none) {
    bool all = args.norms == HeadNorms::all_heads;
    q_norm.emplace(weights, name + ".q_norm", args.head_dim * (all ? args.heads : 1), args.norm_eps);
    k_norm.emplace(weights, name + ".k_norm", args.head_dim * (all ? args.kv_heads : 1), args.norm_eps);
  }
}

mx::array SelfAttention::heads_of(const mx::array& x, int heads, const std::optional<RMSNorm>& norm) const {
  mx::Shape split{x.shape(0), heads, args_.head_dim};
  if (norm && args_.norms == HeadNorms::all_heads) {
    return mx::reshape((*norm)(x), split);
  }
  auto out = mx::reshape(x, split);
  return norm ? (*norm)(out) : out;
}

mx::array SelfAttention::attend(const mx::array& x, Cache& cache) const {
  auto q = heads_of(q_proj(x), args_.heads, q_norm);
  auto k = heads_of(k_proj(x), args_.kv_heads, k_norm);
  auto v = heads_of(v_proj(x), args_.kv_heads, {});
  return mx::reshape(cache.attend(q, k, v, how_), {x.shape(0), args_.heads * args_.head_dim});
}

mx::array SelfAttention::output(const mx::array& attended) const {
  return o_proj(attended);
}

mx::array SelfAttention::operator()(const mx::array& x, Cache& cache) const {
  return output(attend(x, cache));
}

} // namespace parallm
