// The work of paged_attention (ops.h), without MLX: row-contiguous memory in
// and out.
#pragma once

#include "kernels/cpu/elements.h"

namespace parallm::cpu {

struct AttentionJob {
  size_t tokens, heads, kv_heads, dim, v_dim; // T, H, G, D, Dv
  const void* q; // [T,H,D]
  const void* k; // [T,G,D]
  const void* v; // [T,G,Dv]
  Type type; // of q, k, v and out
  const float* cos; // [T, rope_dims/2]
  const float* sin;
  void* k_pool; // [blocks, G, block_size, D], or of kv_row_bytes bytes
  void* v_pool; // [blocks, G, block_size, Dv], likewise
  Type pool_type; // where kv_bits is 0
  int kv_bits; // 0, 4, 8
  size_t blocks, block_size;
  const int32_t* spans; // [span_count, 3]: first, count, offset
  size_t span_count;
  const int32_t* table; // [span_count, table_width]
  size_t table_width;
  const float* sinks; // [H] or null
  const bool* chosen; // [T, choosers, chosen_width] or null
  size_t choosers, chosen_width;
  float scale;
  size_t window; // 0: none
  size_t chunk; // 0: none
  float softcap; // 0: none
  size_t rope_dims;
  bool rope_traditional;
  size_t sparse_block; // 0: every position is seen; else a multiple of 32
  size_t sparse_local, sparse_stride;
  void* out; // [T,H,Dv]
  float* masses; // [T,H] the log of the sum of exp(score) of each query; null: not asked for
  float* rotated; // [T,H,D] the queries; null: not asked for

  /** The first position that a query at `position` sees. */
  size_t first_seen(size_t position) const {
    const size_t begin = window > 0 && position + 1 > window ? position + 1 - window : 0;
    const size_t own = chunk > 0 ? position / chunk * chunk : 0;
    return begin > own ? begin : own;
  }

  /** Which of the positions from `base` on a head of token t sees among those it would; null: all. */
  const bool* chosen_by(size_t t, size_t head, size_t base) const {
    return chosen == nullptr ? nullptr : chosen + (t * choosers + head * choosers / heads) * chosen_width + base;
  }

  /** Whether head `h` of a query at `position` sees the block that p is in. */
  bool sees_block(size_t h, size_t position, size_t p) const {
    const size_t block = sparse_block > 0 ? p / sparse_block : 0;
    return sparse_block == 0 || position / sparse_block < block + sparse_local || (block + h + 1) % sparse_stride == 0;
  }

  /** Where a head's key or value of position `p` of a span's sequence lies in the pools, in rows of D; the rest of its
   * block follows. */
  size_t place(size_t span, size_t p, size_t kv_head) const {
    const size_t block = table[span * table_width + p / block_size];
    return (block * kv_heads + kv_head) * block_size + p % block_size;
  }
};

/** Codes of one head's key or value: a float32 scale and the least value of each
 * group, then the codes, of 4 bits the group's first half in the low ones. */
inline size_t kv_group(size_t dim) {
  return dim % 64 == 0 ? 64 : 32;
}
inline size_t kv_code_row(size_t dim, int bits) {
  return dim / kv_group(dim) * 2 * sizeof(float) + dim * bits / 8;
}

/** Throws where spans or table point outside the step or the pools. */
void run_attention(const AttentionJob& job);

} // namespace parallm::cpu
