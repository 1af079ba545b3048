// The work of recall (ops.h), without MLX: row-contiguous memory in and out.
#pragma once

#include "kernels/cpu/elements.h"

#include <optional>

namespace parallm::cpu {

// Keys as codes of 6 bits, for the first look at many: key n of a kv head, times its inverse norm, is about
//   centre + scale * (code - 32),
// code by code; centre is the mean of all keys, and 16 keys one after another, a group, share a scale. A group's codes
// lie as [words][16 keys][4 bytes], three words for each 16 dimensions (the last ones may be past the key's): byte b of
// word w < 3 holds in its low bits dimension 4w + b, and in its high two bits a part of dimension 12 + b: bits 2w and
// 2w + 1. Four groups are a tile; the last tile may have keys past the last one. After each centre stand the greatest
// length of what rounding takes from a key, and of a key's codes less 32, both in units of its scale.
constexpr size_t code_tile = 64, code_group = 16;
constexpr size_t code_scales = code_tile / code_group; // of a tile
constexpr size_t code_tiles(size_t memories) {
  return (memories + code_tile - 1) / code_tile;
}
/** Parts of 16 dimensions, three words each. */
constexpr size_t code_parts(size_t dim) {
  return (dim + 15) / 16;
}

struct CodesJob {
  size_t kv_heads, memories, dim; // G, N, D
  const void* keys; // [G,N,D]
  const float* inverse_norms; // [G,N]
  Type type; // of keys
  uint8_t* codes; // [G,tiles,4,3*parts,16,4]
  float* scales; // [G,tiles,4]
  float* centres; // [G,D+2]
};

void run_code(const CodesJob& job);

/** Keys or values: floats, or codes of 8 bits, of which x = scale * code + bias in groups of kv_group (attention.h). */
struct RowsOf {
  const void* data; // [G,N,D]
  const float* scales; // [G,N,D/group]; null: floats
  const float* biases;
};

struct RecallJob {
  size_t tokens, heads, kv_heads, memories, dim, v_dim; // T, H, G, N, D, Dv
  const float* q; // [T,H,D]
  RowsOf keys;
  const float* inverse_norms; // [G,N]
  RowsOf values;
  Type memory_type; // of keys and values, where they are floats
  const void* local; // [T,H,Dv]
  const float* masses; // [T,H]
  Type type; // of local and out
  size_t top_k;
  float scale;
  float softcap; // 0: none
  bool by_dot;
  std::optional<float> threshold;
  size_t block; // of memories that come together, 1: each alone
  const int32_t* starts; // [texts] each one's first memory, where there are blocks
  size_t texts;
  void* out; // [T,H,Dv]
  float* record; // [T,3,N], added to; null: none
  const uint8_t* codes; // of the keys, with scales and centres; null: none
  const float* scales;
  const float* centres;
};

void run_recall(const RecallJob& job);

} // namespace parallm::cpu
