// The tensor kinds of GGUF (ggml's ggml-common.h has the blocks' layouts) and how each becomes one of MLX's.
//
// Every kind but MXFP4 is affine inside a group: a weight is scale * code + bias. MLX's "affine" mode is the same, so
// kinds are repacked: codes move, and the scale and bias of a group become two floats. With the kinds' factors (a
// float16 times a few bits) the products are exact in float32, so that a repacked weight is bit for bit what ggml
// dequantizes. Scales and biases are float16 where that holds them exactly (the kinds with one float16 scale for 32
// weights), else float32: for the K kinds, which multiply a float16 with 6-bit integers, that costs 2 bits a weight in
// groups of 32 and 4 in groups of 16, and rounding them to float16 would change every weight. On GPUs the layers cast
// them to the activations' dtype.
//
// Groups of 16 (Q2_K, Q3_K, Q6_K) only our CPU kernels take. For MLX's ops those kinds are requantized: in groups of
// 32, affine from the least to the greatest weight, with enough codes (8 bits for Q6_K, else 6) that the error is at
// most an eighth of the kind's own step.
// IQ4_NL and IQ4_XS look their weights up in a table of 16 bytes: as 8-bit codes they are affine, exactly.
// MXFP4 is MLX's "mxfp4": the same codes and exponents in another order.
//
// Plain data; any thread.
#pragma once

#include <mlx/mlx.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

namespace parallm {
namespace mx = mlx::core;

/** A block of at most 256 weights, unpacked: weight i is scales[i / group] * codes[i] + biases[i / group]. */
struct GgufBlock {
  uint8_t codes[256];
  float scales[16];
  float biases[16];
};

struct GgufType {
  uint32_t id; // ggml_type
  const char* name;
  int weights; // of a block
  int bytes;
  std::optional<mx::Dtype> dtype; // dense kinds
  // Affine kinds:
  int bits = 0;
  int group = 0;
  bool wide = false; // scales and biases need float32
  int coarse_bits = 0; // where groups of 16 can't be had
  void (*unpack)(const uint8_t* block, GgufBlock& out) = nullptr;
};

/** Null for a kind that can't be read. */
const GgufType* find_gguf_type(uint32_t id);
/** "Q4_K", also of kinds that can't be read; "type 99" where ggml has none. */
std::string gguf_type_name(uint32_t id);
/** Names of all that can be read, for errors. */
std::string readable_gguf_types();

} // namespace parallm
