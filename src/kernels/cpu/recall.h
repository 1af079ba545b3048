// The work of recall (ops.h), without MLX: row-contiguous memory in and out.
#pragma once

#include "kernels/cpu/elements.h"

#include <optional>

namespace parallm::cpu {

// Keys as codes, for the first look at many: key n of a kv head, times its inverse norm, is about
//   centre + scale_n * (code - 128),
// code by code; centre is the mean of all. Tiles of 64 keys; a tile's codes lie as [words][64 keys][4 bytes], byte b of
// word w is dimension 4w + b, and those past the dimensions are 128. After a tile's 64 scales (0 past the last key)
// stands the greatest of each 16. After each centre stand the greatest length of what rounding takes, and of the codes
// less 128, both in units of the key's own scale.
constexpr size_t code_tile = 64, code_group = 16;
constexpr size_t code_scales = code_tile + code_tile / code_group; // of a tile
constexpr size_t code_tiles(size_t memories) {
  return (memories + code_tile - 1) / code_tile;
}
constexpr size_t code_words(size_t dim) {
  return (dim + 3) / 4;
}

struct CodesJob {
  size_t kv_heads, memories, dim; // G, N, D
  const void* keys; // [G,N,D]
  const float* inverse_norms; // [G,N]
  Type type; // of keys
  uint8_t* codes; // [G,tiles,words,64,4]
  float* scales; // [G,tiles,68]
  float* centres; // [G,D+2]
};

void run_code(const CodesJob& job);

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
  float* record; // [T,3,N], added to; null: none
  const uint8_t* codes; // of the keys, with scales and centres; null: none
  const float* scales;
  const float* centres;
};

void run_recall(const RecallJob& job);

} // namespace parallm::cpu
