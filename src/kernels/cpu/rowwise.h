// The work of rms_norm, swiglu, weighted_sum, dequantize_rows and sample (ops.h), without MLX: row-contiguous
// memory in and out.
#pragma once

#include "kernels/cpu/elements.h"

namespace parallm::cpu {

struct NormJob {
  size_t rows, width;
  const void* x;
  Type type; // of x and out
  const void* weight; // [width]
  Type weight_type;
  float eps;
  void* out;
};

struct SwigluJob {
  size_t size;
  const void* gate;
  const void* up;
  Type type;
  void* out;
};

struct WeightedSumJob {
  size_t rows, width; // T, N
  size_t terms; // k
  const void* y; // [M,N]
  Type type; // of y and out
  const int32_t* places; // [T,k]
  const float* weights; // [T,k]
  void* out;
};

struct RowsJob {
  size_t rows, matrix_rows, width; // T, N, K
  size_t group_size;
  int bits;
  const int32_t* ids; // [T]
  const void* w; // [N, K*bits/8] bytes
  Type scale_type;
  const void* scales; // [N, K/group_size]
  const void* biases;
  Type type; // of out
  void* out; // [T,K]
};

struct SampleJob {
  size_t rows, width;
  const float* logits;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const float* draw;
  int32_t* out;
};

void run_norm(const NormJob& job);
void run_swiglu(const SwigluJob& job);
void run_weighted_sum(const WeightedSumJob& job);
void run_dequantize_rows(const RowsJob& job);
void run_sample(const SampleJob& job);

} // namespace parallm::cpu
