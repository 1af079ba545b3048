// The sums of matmul and quantized_matmul (ops.h), without MLX: row-contiguous
// memory in and out.
#pragma once

#include "kernels/cpu/elements.h"

namespace parallm::cpu {

struct MatmulJob {
  size_t rows, inner, columns; // M, K, N
  const void* x;
  Type x_type; // of x and out
  const void* w; // dense [N,K]; quantized: [N, K*bits/8] bytes
  Type w_type; // of a dense w, or of scales and biases
  int bits = 0; // 0: dense
  size_t group = 0;
  const void* scales = nullptr; // [N, K/group]
  const void* biases = nullptr;
  const void* bias = nullptr; // [N] or null
  Type bias_type = Type::f32;
  void* out;
};

void run_matmul(const MatmulJob& job);

} // namespace parallm::cpu
