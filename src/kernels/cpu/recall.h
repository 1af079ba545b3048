// The work of recall (ops.h), without MLX: row-contiguous memory in and out.
#pragma once

#include "kernels/cpu/elements.h"

#include <optional>

namespace parallm::cpu {

struct RecallJob {
  size_t tokens, heads, kv_heads, memories, dim, v_dim; // T, H, G, N, D, Dv
  const float* q; // [T,H,D]
  const void* keys; // [G,N,D]
  const float* inverse_norms; // [G,N]
  const void* values; // [G,N,Dv]
  Type memory_type; // of keys and values
  const void* local; // [T,H,Dv]
  const float* masses; // [T,H]
  Type type; // of local and out
  size_t top_k;
  float scale;
  float softcap; // 0: none
  bool by_dot;
  std::optional<float> threshold;
  void* out; // [T,H,Dv]
};

void run_recall(const RecallJob& job);

} // namespace parallm::cpu
