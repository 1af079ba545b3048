// Affine codes as a matmul's weights (matmul.cpp). They go from memory to the tensor cores' registers as they lie: a
// lane holds a quarter of a group of each of its rows, and x is read in the same order. A group's codes times x are
// summed exactly as small integers, then scaled in float32: y = scale * (sum of code * x) + bias * (sum of x), group by
// group.
#include "kernels/cuda/compile.h"
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/matmul_code.h"
#include "kernels/cuda/ops.h"

#include <mlx/backend/cuda/cuda.h>

#include <cstdlib>
#include <string>
#include <string_view>

namespace parallm::cuda {

// GROUP, BITS; GV: groups that a warp reads at once; MB: eights of x's rows; NT: sixteens of w's rows that a warp has.
// KW warps share out a row's groups, GV in turn, which they fetch ahead into shared memory of their own, and are added
// up in order at the end. There, 16 bytes of a row lie at places that differ with the row, so that the lanes'
// reads meet different banks.
//
// 4 bits: a code goes into the mantissa of a float (128 + code in bfloat16, 64 + code in float16); OFFSET is taken off
// in the bias. The shifts that do it pair code j of a word with code j + 4, so x's words are paired alike.
// 8 bits: 1024 + code in float16; in bfloat16 a code is exact by itself.
const char* const quantized_code = R"cu(
constexpr int LANE = GROUP / 4, WORDS = LANE * BITS / 32, STEPS = LANE / 4, WARPS = 8, STAGES = 3, ROWS = NT * 16;
constexpr int OUTPUTS = GATED ? ROWS / 2 : ROWS;
constexpr int CHUNKS = GV * WORDS, STEP = 32 / CHUNKS, STAGE = ROWS * (CHUNKS * 16 + 4 * GV);
constexpr bool BF = is_bf16<T>;
constexpr float OFFSET = BITS == 4 ? (BF ? 128.f : 64.f) : (BF ? 0.f : 1024.f);
constexpr unsigned ONES = BF ? 0x3F803F80 : 0x3C003C00;
const int M = x_shape[0], K = x_shape[1], groups = K / GROUP;
const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % 4, g = lane / 4;
const int n0 = (block * (WARPS / KW) + warp / KW) * OUTPUTS;
const int first = groups / GV * split / SPLITS * GV, last = groups / GV * (split + 1) / SPLITS * GV;
float acc[MB][NT][4] = {};
extern __shared__ uint4 ring[];
char* mine = (char*)ring + warp * STAGES * STAGE;
const int r0 = lane / CHUNKS, k0 = lane % CHUNKS;
const long lane_at = (long)(n0 + r0) * groups * (WORDS * 16) + k0 * 16;
const char *lane_w = (const char*)w + lane_at, *lane_w2 = (const char*)w2 + lane_at;
const int at0 = (r0 * CHUNKS + (k0 ^ r0 * WORDS % CHUNKS)) * 16;
auto fetch = [&](int s, int stage) {
  char* to = mine + stage * STAGE;
  const int skip = s * (WORDS * 16);
#pragma unroll
  for (int r = 0; r < ROWS; r += STEP) // where GATED, STEP divides OUTPUTS
    if (n0 + r0 + r % OUTPUTS < N)
      copy_later<16>(to + at0 + r * CHUNKS * 16,
                     (r < OUTPUTS ? lane_w : lane_w2) + skip + (long)(r % OUTPUTS) * groups * (WORDS * 16));
  if constexpr (GV > 1) {
#pragma unroll
    for (int r = 0; r < 2 * ROWS; r += 32) {
      const int i = r + lane, n = n0 + i % OUTPUTS;
      const bool second = i % ROWS >= OUTPUTS;
      const T* from = i < ROWS ? (second ? scales2 : scales) : (second ? biases2 : biases);
      if (n < N) copy_later<GV * 2>(to + ROWS * CHUNKS * 16 + i * GV * 2, from + (long)n * groups + s);
    }
  }
};
constexpr bool SHARED_X = KW < WARPS;
constexpr int X_PITCH = KW * GV * GROUP * 2 + 16, X_STAGE = MB * 8 * X_PITCH, X_ROW = KW * GV * GROUP / 8;
char* x_tiles = (char*)ring + WARPS * STAGES * STAGE;
auto fetch_x = [&](int base, int stage) {
  for (int i = threadIdx.x; i < M * X_ROW; i += WARPS * 32) {
    const int row = i / X_ROW, at = i % X_ROW;
    if (base + at * 8 / GROUP < last)
      copy_later<16>(x_tiles + stage * X_STAGE + row * X_PITCH + at * 16, x + (long)row * K + base * GROUP + at * 8);
  }
};
#pragma unroll
for (int i = 0; i < STAGES - 1; ++i) {
  const int s = first + (warp % KW + KW * i) * GV;
  if (s < last) fetch(s, i);
  if (SHARED_X) fetch_x(first + KW * i * GV, i);
  asm volatile("cp.async.commit_group;" ::: "memory");
}
for (int base = first, stage = 0; base < last; base += KW * GV, stage = (stage + 1) % STAGES) {
  const int s = base + warp % KW * GV;
  unsigned early[GV][SHARED_X ? 1 : MB][LANE / 2] = {};
  if constexpr (!SHARED_X) {
#pragma unroll
    for (int v = 0; v < GV; ++v)
#pragma unroll
      for (int m = 0; m < MB; ++m)
        if (m * 8 + g < M && s < last)
          copy<LANE / 2>(early[v][m], (const unsigned*)(x + (long)(m * 8 + g) * K + (s + v) * GROUP + c * LANE));
  }
  asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
  if (SHARED_X) __syncthreads(); else __syncwarp();
  const int next = base + (STAGES - 1) * KW * GV;
  if (next + warp % KW * GV < last) fetch(next + warp % KW * GV, (stage + STAGES - 1) % STAGES);
  if (SHARED_X) fetch_x(next, (stage + STAGES - 1) % STAGES);
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (s >= last) continue;
  const char* now = mine + stage * STAGE;
  const char* now_x = x_tiles + stage * X_STAGE + g * X_PITCH + (warp % KW * GV * GROUP + c * LANE) * 2;
  T scs[NT][2][GV], bis[NT][2][GV];
#pragma unroll
  for (int t = 0; t < NT; ++t)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = t * 16 + i * 8 + g;
      const T* from = (const T*)(now + ROWS * CHUNKS * 16) + r * GV;
      if constexpr (GV > 1) {
        copy<GV>(scs[t][i], from);
        copy<GV>(bis[t][i], from + ROWS * GV);
      } else {
        const long at = (long)min(n0 + r % OUTPUTS, N - 1) * groups + s;
        scs[t][i][0] = (r < OUTPUTS ? scales : scales2)[at];
        bis[t][i][0] = (r < OUTPUTS ? biases : biases2)[at];
      }
    }
#pragma unroll
  for (int v = 0; v < GV; ++v) {
    unsigned a[NT][STEPS][4];
    float sc[NT][2], bi[NT][2];
#pragma unroll
    for (int t = 0; t < NT; ++t)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sc[t][i] = float(scs[t][i][v]);
        unsigned ws[WORDS];
        copy<WORDS>(ws, (const unsigned*)(now + ((t * 16 + i * 8) * CHUNKS + (v * WORDS ^ g * WORDS % CHUNKS)) * 16) +
                            g * CHUNKS * 4 + c * WORDS);
        bi[t][i] = fmaf(-OFFSET, sc[t][i], float(bis[t][i][v]));
#pragma unroll
        for (int j = 0; j < WORDS; ++j) {
          const unsigned q = ws[j];
          if constexpr (BITS == 4) {
            a[t][2 * j][i] = BF ? codes(q, 0x000F000F, 0x43004300) : codes(q << 4, 0x00F000F0, 0x54005400);
            a[t][2 * j][i + 2] = BF ? codes(q >> 4, 0x000F000F, 0x43004300) : codes(q, 0x00F000F0, 0x54005400);
            a[t][2 * j + 1][i] = BF ? codes(q >> 8, 0x000F000F, 0x43004300) : codes(q >> 4, 0x00F000F0, 0x54005400);
            a[t][2 * j + 1][i + 2] = BF ? codes(q >> 12, 0x000F000F, 0x43004300) : codes(q >> 8, 0x00F000F0, 0x54005400);
          } else if constexpr (BF) {
            auto code = [&](int k) { return __uint_as_float(__byte_perm(q, 0x4B000000, 0x7540 | k)) - 8388608.f; };
            a[t][j][i] = pair<T>(code(0), code(1));
            a[t][j][i + 2] = pair<T>(code(2), code(3));
          } else {
            a[t][j][i] = __byte_perm(q, 0x64646464, 0x4140);
            a[t][j][i + 2] = __byte_perm(q, 0x64646464, 0x4342);
          }
        }
      }
constexpr int AT_ONCE = MB > 1 ? 2 : 1; // eights of x, so that the tensor cores needn't wait for their own sums
#pragma unroll
    for (int m0 = 0; m0 < MB; m0 += AT_ONCE) {
      unsigned xs[AT_ONCE][LANE / 2];
      float sum[AT_ONCE][4] = {}, y[AT_ONCE][NT][4] = {};
#pragma unroll
      for (int a0 = 0; a0 < AT_ONCE; ++a0) {
        const int m = m0 + a0;
        if constexpr (SHARED_X) {
          copy<LANE / 2>(xs[a0], (const unsigned*)(now_x + m * 8 * X_PITCH + v * GROUP * 2));
        } else {
          copy<LANE / 2>(xs[a0], early[v][m]);
        }
        if constexpr (BITS == 4) {
#pragma unroll
          for (int j = 0; j < LANE / 2; j += 4) {
            const unsigned q0 = xs[a0][j], q1 = xs[a0][j + 1], q2 = xs[a0][j + 2], q3 = xs[a0][j + 3];
            xs[a0][j] = __byte_perm(q0, q2, 0x5410);
            xs[a0][j + 1] = __byte_perm(q0, q2, 0x7632);
            xs[a0][j + 2] = __byte_perm(q1, q3, 0x5410);
            xs[a0][j + 3] = __byte_perm(q1, q3, 0x7632);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < STEPS; ++k) {
#pragma unroll
        for (int a0 = 0; a0 < AT_ONCE; ++a0) mma<T>(sum[a0], ONES, ONES, ONES, ONES, xs[a0][2 * k], xs[a0][2 * k + 1]);
#pragma unroll
        for (int t = 0; t < NT; ++t)
#pragma unroll
          for (int a0 = 0; a0 < AT_ONCE; ++a0)
            mma<T>(y[a0][t], a[t][k][0], a[t][k][1], a[t][k][2], a[t][k][3], xs[a0][2 * k], xs[a0][2 * k + 1]);
      }
#pragma unroll
      for (int a0 = 0; a0 < AT_ONCE; ++a0)
#pragma unroll
        for (int t = 0; t < NT; ++t)
#pragma unroll
          for (int i = 0; i < 4; ++i)
            acc[m0 + a0][t][i] =
                fmaf(sc[t][i / 2], y[a0][t][i], fmaf(bi[t][i / 2], sum[a0][i % 2], acc[m0 + a0][t][i]));
    }
  }
}
)cu";

namespace {

// A thread widens a word of codes.
constexpr const char* widen = R"cu(
constexpr int CODES = 32 / BITS;
const long index = (long)blockIdx.x * blockDim.x + threadIdx.x;
if (index >= (long)w_shape[0] * w_shape[1]) return;
const unsigned q = w[index];
const long at = index * CODES / GROUP;
const float scale = float(scales[at]), bias = float(biases[at]);
unsigned pairs[CODES / 2];
#pragma unroll
for (int i = 0; i < CODES / 2; ++i) {
  auto value = [&](int k) { return fmaf(float(q >> k * BITS & ((1 << BITS) - 1)), scale, bias); };
  pairs[i] = pair<T>(value(2 * i), value(2 * i + 1));
}
if constexpr (BITS == 4) {
  ((uint4*)out)[index] = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
} else {
  ((uint2*)out)[index] = make_uint2(pairs[0], pairs[1]);
}
)cu";

} // namespace

bool available() {
  static const bool found = [] {
    const char* wanted = std::getenv("PARALLM_CUDA_KERNELS");
    return compute_capability() >= 80 && can_compile() && !(wanted && std::string_view(wanted) == "0");
  }();
  return found;
}

/** CUDA C++ Programming Guide, "Compute Capabilities"; consumer GPUs give a block 99 KiB. */
bool has_shared_memory(mx::Dtype x, int bytes) {
  const int at = compute_capability();
  const int most = at >= 90 && at < 120 ? 227 : at == 80 || at == 87 ? 163 : 0;
  return bytes <= most * 1024 && (x == mx::float16 || x == mx::bfloat16);
}

bool multiplies(mx::Dtype x, int group_size, int bits) {
  return has_shared_memory(x, 0) && (bits == 4 || bits == 8) &&
      (group_size == 32 || group_size == 64 || group_size == 128);
}

mx::array dequantize(const mx::array& w, const mx::array& scales, const mx::array& biases, int group_size, int bits) {
  thread_local const Kernel kernel(
      "dequantize", {"w", "scales", "biases"}, {"out"}, widen, std::string(device_code) + copy_code);
  const int words = w.size();
  return kernel(
      {w, scales, biases},
      {{w.shape(0), w.shape(1) * 32 / bits}},
      {scales.dtype()},
      {(words + 255) / 256 * 256, 1, 1},
      {256, 1, 1},
      {{"T", scales.dtype()}, {"GROUP", group_size}, {"BITS", bits}})[0];
}

} // namespace parallm::cuda
