// Dense matmul of one row, a matrix by a vector: nothing but memory limits it.
#include "kernels/cuda/matmul_code.h"

namespace parallm::cuda {

// A warp has ROWS rows of w. A lane reads 16 bytes of each at a time, and eight times so before it uses the first; x
// comes from the L1 cache.
const char* const gemv_code = R"cu(
constexpr int WARPS = 8, OUTPUTS = GATED ? ROWS / 2 : ROWS, AHEAD = 8 / ROWS;
const int K = x_shape[1], lane = threadIdx.x % 32, n0 = (block * WARPS + threadIdx.x / 32) * OUTPUTS;
if (n0 >= N) return;
const T* from[ROWS];
#pragma unroll
for (int r = 0; r < ROWS; ++r) from[r] = (r < OUTPUTS ? w : w2) + (long)min(n0 + r % OUTPUTS, N - 1) * K;
const unsigned long long once = read_once();
float acc[ROWS] = {};
for (int k0 = lane * 8; k0 < K; k0 += 256 * AHEAD) {
  uint4 ws[AHEAD][ROWS], xs[AHEAD];
#pragma unroll
  for (int a = 0; a < AHEAD; ++a)
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      if (k0 + a * 256 < K)
        asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
                     : "=r"(ws[a][r].x), "=r"(ws[a][r].y), "=r"(ws[a][r].z), "=r"(ws[a][r].w)
                     : "l"(from[r] + k0 + a * 256), "l"(once));
#pragma unroll
  for (int a = 0; a < AHEAD; ++a)
    if (k0 + a * 256 < K) xs[a] = *(const uint4*)(x + k0 + a * 256);
#pragma unroll
  for (int a = 0; a < AHEAD; ++a) {
    if (k0 + a * 256 >= K) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 y = unpair<T>((&xs[a].x)[i]);
#pragma unroll
      for (int r = 0; r < ROWS; ++r) {
        const float2 two = unpair<T>((&ws[a][r].x)[i]);
        acc[r] = fmaf(two.x, y.x, fmaf(two.y, y.y, acc[r]));
      }
    }
  }
}
float y = 0, up = 0; // of the output that this lane writes
#pragma unroll
for (int r = 0; r < ROWS; ++r) {
#pragma unroll
  for (int i = 16; i > 0; i /= 2) acc[r] += __shfl_xor_sync(~0u, acc[r], i);
  if (lane == r % OUTPUTS) (r < OUTPUTS ? y : up) = acc[r];
}
const int n = n0 + lane;
if (lane >= OUTPUTS || n >= N) return;
T result = T(y);
if constexpr (GATED) {
  const float gate = float(result);
  result = T(gate / (1 + expf(-gate)) * float(T(up)));
}
out[n] = ADDED ? T(float(added[n]) + float(result)) : result;
)cu";

} // namespace parallm::cuda
