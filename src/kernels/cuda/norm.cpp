// RMS norm of few rows.
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/ops.h"

#include <bit>

namespace parallm::cuda {

namespace {

// A block a row; 16 bytes at once. The scaled number is rounded before it is multiplied, as by MLX's op.
constexpr const char* source = R"cu(
const int D = x_shape[1];
const long row = blockIdx.x;
struct alignas(16) Pack { T v[8]; };
const Pack *from = (const Pack*)(x + row * D), *by = (const Pack*)weight;
float sum = 0;
for (int i = threadIdx.x; i < D / 8; i += THREADS) {
  const Pack p = from[i];
#pragma unroll
  for (int j = 0; j < 8; ++j) sum = fmaf(float(p.v[j]), float(p.v[j]), sum);
}
#pragma unroll
for (int i = 16; i > 0; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
__shared__ float sums[THREADS / 32];
if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
__syncthreads();
sum = 0;
#pragma unroll
for (int i = 0; i < THREADS / 32; ++i) sum += sums[i];
const float scale = rsqrtf(sum / D + __int_as_float(EPS));
for (int i = threadIdx.x; i < D / 8; i += THREADS) {
  const Pack p = from[i], w = by[i];
  Pack y;
#pragma unroll
  for (int j = 0; j < 8; ++j) y.v[j] = T(float(T(float(p.v[j]) * scale)) * float(w.v[j]));
  ((Pack*)(out + row * D))[i] = y;
}
)cu";

constexpr int threads = 512;

} // namespace

bool norms(const mx::array& x, const mx::array& weight) {
  return x.ndim() == 2 && x.shape(0) > 0 && x.shape(0) <= most_rows && x.shape(1) % 8 == 0 &&
      x.dtype() == weight.dtype() && (x.dtype() == mx::float16 || x.dtype() == mx::bfloat16);
}

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  static const Kernel kernel("rms_norm", {"x", "weight"}, {"out"}, source);
  return kernel(
      {x, weight},
      {x.shape()},
      {x.dtype()},
      {x.shape(0) * threads, 1, 1},
      {threads, 1, 1},
      {{"T", x.dtype()}, {"THREADS", threads}, {"EPS", std::bit_cast<int>(eps)}})[0];
}

} // namespace parallm::cuda
