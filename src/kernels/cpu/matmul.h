// The sums of matmul and quantized_matmul (ops.h), without MLX: row-contiguous
// memory in and out.
#pragma once

#include "kernels/cpu/elements.h"

#include <vector>

namespace parallm::cpu {

/** MLX's quantizations (mlx/ops.h, `quantize`). affine: codes with a scale and a bias a group; the others: small
 * floats (OCP's Microscaling formats and NVFP4) with a scale of one byte a group. */
enum class Mode { affine, mxfp4, nvfp4, mxfp8 };

struct Quantized {
  Mode mode = Mode::affine;
  int group_size = 0;
  int bits = 0; // 0: dense
  bool scaled = false; // a factor of all the scales

  bool operator==(const Quantized&) const = default;
};

/** One matrix w [N,K] of a job, and where its product goes. */
struct Factor {
  size_t columns; // N
  Quantized how;
  const void* w; // dense [N,K]; quantized: [N, K*bits/8] bytes
  Type type; // of a dense w, or of affine scales and biases
  const void* scales = nullptr; // [N, K/group_size]; bytes where the mode isn't affine
  const void* biases = nullptr; // affine's
  const float* global_scale = nullptr; // that factor
  const void* bias = nullptr; // [N] or null
  Type bias_type = Type::f32;
  void* out = nullptr; // [M,N]
};

/** Products of one x [M,K], and what is done before and after in the same pass. */
struct MatmulJob {
  size_t rows, inner; // M, K
  const void* x;
  Type type; // of x, addend and out
  const void* norm = nullptr; // [K] x is RMS-normed first, with these weights
  Type norm_type = Type::f32;
  float eps = 0;
  bool gated = false; // two factors of one form make one product, silu(first) * second, the first's out
  const void* addend = nullptr; // [M,N] added to the only product
  std::vector<Factor> factors;
};

/** What a scale's 256 bytes stand for: e8m0 (powers of 2) for mxfp4 and mxfp8, e4m3 for nvfp4. */
const float* byte_scales(Mode mode);

void run_matmul(const MatmulJob& job);

/** Floats of a job's rows, normed; a whole number of vectors each. */
struct FloatRows {
  const float* data;
  size_t stride;
};

/** The products by affine factors, all of one form, in whole numbers (coded_simd.cpp). */
void run_coded_matmul(const MatmulJob& job, const FloatRows& x, const Factor* factors, size_t count);

/** Slots of thread_scratch: a product by codes runs inside of a job that holds the floats. */
namespace scratch {
enum Slot { rows, codes, words, groups, wide, bytes, sums };
}

} // namespace parallm::cpu
