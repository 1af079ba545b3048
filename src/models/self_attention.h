// Attention with grouped heads (arXiv 2305.13245) as most decoders have it: four
// projections, maybe norms of q and k, RoPE, maybe a window. Engine thread only.
#pragma once

#include "kv/cache.h"
#include "models/config.h"
#include "nn/linear.h"
#include "nn/norm.h"

#include <memory>
#include <optional>

namespace parallm {

/** What q and k are normed over, by `q_norm` and `k_norm`, before RoPE. */
enum class HeadNorms { none, each_head, all_heads };

struct SelfAttentionArgs {
  /** hidden_size, num_attention_heads, num_key_value_heads, head_dim. */
  explicit SelfAttentionArgs(const Config& config);

  int dims;
  int heads;
  int kv_heads;
  int head_dim;
  bool bias = false; // q, k and v must have one (each has where it exists)
  bool output_bias = false;
  HeadNorms norms = HeadNorms::none;
  float norm_eps = 1e-6f;
  std::shared_ptr<const Rope> rope; // none: no rotation
  int window = 0;
  std::optional<float> scale; // 1 / sqrt(head_dim)

  CacheSpec cache() const {
    return {kv_heads, head_dim, head_dim};
  }
};

class SelfAttention {
 public:
  SelfAttention(const SelfAttentionArgs& args, Weights& weights, const std::string& name);

  /** x [T,D] -> [T,D]. */
  mx::array operator()(const mx::array& x, Cache& cache) const;
  /** Without the output projection: [T, heads*head_dim]. */
  mx::array attend(const mx::array& x, Cache& cache) const;
  mx::array output(const mx::array& attended) const;

 private:
  mx::array heads_of(const mx::array& x, int heads, const std::optional<RMSNorm>& norm) const;

  SelfAttentionArgs args_;
  Attention how_;
  Linear q_proj;
  Linear k_proj;
  Linear v_proj;
  Linear o_proj;
  std::optional<RMSNorm> q_norm;
  std::optional<RMSNorm> k_norm;
};

} // namespace parallm
