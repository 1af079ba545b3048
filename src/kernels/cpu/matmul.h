// The sums of matmul and quantized_matmul (ops.h), without MLX: row-contiguous
// memory in and out.
#pragma once

#include "kernels/cpu/elements.h"

namespace parallm::cpu {

/** MLX's quantizations (mlx/ops.h, `quantize`). affine: codes with a scale and a bias a group; the others: small
 * floats (OCP's Microscaling formats and NVFP4) with a scale of one byte a group. */
enum class Mode { affine, mxfp4, nvfp4, mxfp8 };

struct MatmulJob {
  size_t rows, inner, columns; // M, K, N
  const void* x;
  Type x_type; // of x and out
  const void* w; // dense [N,K]; quantized: [N, K*bits/8] bytes
  Type w_type; // of a dense w, or of affine scales and biases
  Mode mode = Mode::affine;
  int bits = 0; // 0: dense
  size_t group = 0;
  const void* scales = nullptr; // [N, K/group]; bytes where the mode isn't affine
  const void* biases = nullptr; // affine's
  const void* bias = nullptr; // [N] or null
  Type bias_type = Type::f32;
  void* out;
};

/** What a scale's 256 bytes stand for: e8m0 (powers of 2) for mxfp4 and mxfp8, e4m3 for nvfp4. */
const float* byte_scales(Mode mode);

void run_matmul(const MatmulJob& job);
/** The affine ones, in whole numbers (coded_simd.cpp). */
void run_coded_matmul(const MatmulJob& job);

} // namespace parallm::cpu
