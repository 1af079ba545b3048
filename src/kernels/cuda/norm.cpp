// RMS norm of few rows.
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/ops.h"

#include <bit>

namespace parallm::cuda {

namespace {

// A block a row; 16 bytes at once, which stay in registers. The scaled number is rounded before it is multiplied, as by
// MLX's op.
constexpr const char* source = R"cu(
const int D = x_shape[1];
const long row = blockIdx.x;
struct alignas(16) Pack { T v[8]; };
Pack p[EACH], w[EACH];
float sum = 0;
#pragma unroll
for (int e = 0; e < EACH; ++e)
  if (const int i = threadIdx.x + e * THREADS; i < D / 8) {
    p[e] = ((const Pack*)(x + row * D))[i];
    w[e] = ((const Pack*)weight)[i];
  }
#pragma unroll
for (int e = 0; e < EACH; ++e)
  if (threadIdx.x + e * THREADS < D / 8)
#pragma unroll
    for (int j = 0; j < 8; ++j) sum = fmaf(float(p[e].v[j]), float(p[e].v[j]), sum);
#pragma unroll
for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
__shared__ float sums[THREADS / 32];
if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
__syncthreads();
sum = 0;
#pragma unroll
for (int i = 0; i < THREADS / 32; ++i) sum += sums[i];
const float scale = rsqrtf(sum / D + __int_as_float(EPS));
#pragma unroll
for (int e = 0; e < EACH; ++e)
  if (const int i = threadIdx.x + e * THREADS; i < D / 8) {
    Pack y;
#pragma unroll
    for (int j = 0; j < 8; ++j) y.v[j] = T(float(T(float(p[e].v[j]) * scale)) * float(w[e].v[j]));
    ((Pack*)(out + row * D))[i] = y;
  }
)cu";

constexpr int threads = 512;

constexpr int most_columns = 8 * 8 * threads; // that registers hold

} // namespace

bool norms(const mx::array& x, const mx::array& weight) {
  return x.ndim() == 2 && x.shape(0) > 0 && x.shape(0) <= most_rows && x.shape(1) % 8 == 0 &&
      x.shape(1) <= most_columns && x.dtype() == weight.dtype() &&
      (x.dtype() == mx::float16 || x.dtype() == mx::bfloat16);
}

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  thread_local const Kernel kernel("rms_norm", {"x", "weight"}, {"out"}, source);
  const int each = (x.shape(1) / 8 + threads - 1) / threads;
  return kernel(
      {x, weight},
      {x.shape()},
      {x.dtype()},
      {x.shape(0) * threads, 1, 1},
      {threads, 1, 1},
      {{"T", x.dtype()}, {"THREADS", threads}, {"EACH", each}, {"EPS", std::bit_cast<int>(eps)}})[0];
}

} // namespace parallm::cuda
