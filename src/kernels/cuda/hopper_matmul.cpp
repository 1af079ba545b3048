// Matmuls of few rows on Hopper: the warp groups' instructions (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate", wgmma) take 64 of w's rows, and x as the other factor. Each block has an equal run of all the
// tiles' pieces of K, one after another, whatever the matrices' sizes ("stream-K", Osama et al., arXiv 2301.03598), so
// the GPU has no idle end. Where several blocks share a tile, the last one to come adds up what all of them left in
// `sums`, in their order: a row's sums are in the same order with however many rows.
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/matmul_code.h"
#include "kernels/cuda/ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <tuple>

namespace parallm::cuda {

namespace {

// What a piece of K is made of: 64 columns, or 128 of codes. A tile's rows are TR of w's; where GATED, eights of both
// matrices in turn, so that a thread has a gate and what it gates.
constexpr const char* sizes_code = R"cu(
constexpr int THREADS = 256, TR = 128 * MT, OUTPUTS = GATED ? TR / 2 : TR;
constexpr int CHUNK = BITS == 16 ? 64 : 128, BYTES = CHUNK * BITS / 8; // of a row's piece
)cu";

// Then stands `find`, which says where a tile lies.
constexpr const char* begin_code = R"cu(
constexpr int PARTS = BYTES / 16, STEP = THREADS / PARTS, COPIES = TR / STEP;
constexpr int W_STAGE = TR * BYTES, X_STAGE = MR * CHUNK * 2;
const int M = x_shape[0], K = x_shape[1], chunks = K / CHUNK, t = threadIdx.x;
const int lane = t % 32, c = lane % 4, g = lane / 4, group = t / 128, warp = t % 128 / 32;
const int total = tiles * chunks;
auto start_of = [&](int block) { return int((long)total * block / gridDim.x); };
auto block_of = [&](int unit) { return int(((long)(unit + 1) * gridDim.x - 1) / total); };
const int begin = start_of(blockIdx.x), end = start_of(blockIdx.x + 1);
extern __shared__ char shared[];
const unsigned at0 = (unsigned)__cvta_generic_to_shared(shared), base = (at0 + 1023) / 1024 * 1024;
char* const w_ring = shared + (base - at0);
char* const x_ring = w_ring + STAGES * W_STAGE;

// w's pieces, fetched ahead: unit `fetched` of the ring is the next.
int fetched = begin, fetch_chunk = begin % chunks;
Place fetch_place = find(begin / chunks);
auto fetch = [&](int stage) {
  if (fetched < end) {
    const int r0 = t / PARTS, j = t % PARTS;
#pragma unroll
    for (int i = 0; i < COPIES; ++i) {
      const int r = r0 + i * STEP; // of the tile
      const int n = fetch_place.tile * OUTPUTS + (GATED ? r / 16 * 8 + r % 8 : r);
      const char* from = (const char*)(GATED && r % 16 >= 8 ? fetch_place.w2 : fetch_place.w);
      const int to = BITS == 4 ? j : BITS == 8 ? j ^ r % 2 : j ^ r % 8;
      copy_later<16>(w_ring + stage * W_STAGE + r * BYTES + to * 16,
                     from + ((long)min(n, fetch_place.N - 1) * chunks + fetch_chunk) * BYTES + j * 16);
    }
    if constexpr (BITS == 16) {
#pragma unroll
      for (int i = 0; i < (MR * 8 + THREADS - 1) / THREADS; ++i) {
        const int row = t / 8 + i * (THREADS / 8), j = t % 8;
        if (row < M) // what stands in others' places reaches no result
          copy_later<16>(x_ring + stage * X_STAGE + row * 128 + (j ^ row % 8) * 16,
                         x + (long)row * K + fetch_chunk * 64 + j * 8);
      }
    }
    ++fetched;
    if (++fetch_chunk == chunks) {
      fetch_chunk = 0;
      fetch_place = find(fetched / chunks);
    }
  }
  asm volatile("cp.async.commit_group;" ::: "memory");
};
#pragma unroll
for (int i = 0; i < STAGES - 1; ++i) fetch(i);

float acc[MT][MR / 2];
int chunk = begin % chunks, from_chunk = chunk, tile_index = begin / chunks;
Place place = find(tile_index);
)cu";

constexpr const char* dense_loop = R"cu(
for (int unit = begin, stage = 0; unit < end; ++unit, stage = (stage + 1) % STAGES) {
  asm volatile("cp.async.wait_group %0;\nfence.proxy.async;" ::"n"(STAGES - 2) : "memory");
  __syncthreads();
  fetch((stage + STAGES - 1) % STAGES);
  const unsigned ws = base + stage * W_STAGE + group * MT * 64 * 128;
  const unsigned xs = base + STAGES * W_STAGE + stage * X_STAGE;
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < 4; ++k)
#pragma unroll
    for (int m = 0; m < MT; ++m)
      multiply<T>(acc[m], swizzled(ws + m * 64 * 128 + k * 32), swizzled(xs + k * 32), chunk != from_chunk || k > 0);
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
  hold(acc);
)cu";

// A lane has 32 columns of a row's piece, which lie together, for all eight steps of 16: in step s its four are
//   4 bits: of word s / 2, codes 0, 4 and 1, 5 (s even) or 2, 6 and 3, 7
//   8 bits: the four codes of word s
// so x is laid out in that order: of each step, [half][eight of rows][row][16 bytes], lane c's pair at 4c.
constexpr const char* codes_loop = R"cu(
constexpr unsigned MAGIC = is_bf16<T> ? 0x43004300 : 0x64006400; // 128 or 1024, to whose last bits a code is added
const int x_row = t % MR, x_part = t / MR;
uint4 later[4]; // x's next piece, on its way
auto load_x = [&](int piece) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    later[i] = x_row < M ? *(const uint4*)(x + (long)x_row * K + piece * CHUNK + i * 32 + x_part * 8) : make_uint4(0, 0, 0, 0);
};
auto store_x = [&](int stage) {
  auto to = [&](int step, int half) {
    return (uint4*)(x_ring + stage * X_STAGE + ((step * 2 + half) * (MR / 8) + x_row / 8) * 128 + x_row % 8 * 16);
  };
  const uint4 *v = later;
  if constexpr (BITS == 4) {
    auto pairs = [](unsigned a0, unsigned b0, unsigned a1, unsigned b1, unsigned a2, unsigned b2, unsigned a3, unsigned b3, unsigned how) {
      return make_uint4(__byte_perm(a0, b0, how), __byte_perm(a1, b1, how), __byte_perm(a2, b2, how), __byte_perm(a3, b3, how));
    };
    *to(2 * x_part, 0) = pairs(v[0].x, v[0].z, v[1].x, v[1].z, v[2].x, v[2].z, v[3].x, v[3].z, 0x5410);
    *to(2 * x_part, 1) = pairs(v[0].x, v[0].z, v[1].x, v[1].z, v[2].x, v[2].z, v[3].x, v[3].z, 0x7632);
    *to(2 * x_part + 1, 0) = pairs(v[0].y, v[0].w, v[1].y, v[1].w, v[2].y, v[2].w, v[3].y, v[3].w, 0x5410);
    *to(2 * x_part + 1, 1) = pairs(v[0].y, v[0].w, v[1].y, v[1].w, v[2].y, v[2].w, v[3].y, v[3].w, 0x7632);
  } else {
    *to(2 * x_part, 0) = make_uint4(v[0].x, v[1].x, v[2].x, v[3].x);
    *to(2 * x_part, 1) = make_uint4(v[0].y, v[1].y, v[2].y, v[3].y);
    *to(2 * x_part + 1, 0) = make_uint4(v[0].z, v[1].z, v[2].z, v[3].z);
    *to(2 * x_part + 1, 1) = make_uint4(v[0].w, v[1].w, v[2].w, v[3].w);
  }
  asm volatile("fence.proxy.async;" ::: "memory");
};
const bool has_x = t < MR * 4;
// The scales and biases of the lane's rows, of one group each, a unit ahead.
unsigned short scale_bits[MT][2], bias_bits[MT][2];
Place scale_place = place;
auto load_scales = [&](int piece) {
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = (group * MT + m) * 64 + warp * 16;
      const int n = scale_place.tile * OUTPUTS + (GATED ? r / 2 : r + i * 8) + g;
      const long at = (long)min(n, scale_place.N - 1) * (K / GROUP) + (piece * CHUNK + c * 32) / GROUP;
      scale_bits[m][i] = ((const unsigned short*)(GATED && i ? scale_place.s2 : scale_place.s))[at];
      bias_bits[m][i] = ((const unsigned short*)(GATED && i ? scale_place.b2 : scale_place.b))[at];
    }
};
if (has_x) {
  load_x(chunk);
  store_x(0);
  load_x((chunk + 1) % chunks);
}
load_scales(chunk);
for (int unit = begin, stage = 0; unit < end; ++unit, stage = (stage + 1) % STAGES) {
  asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
  __syncthreads();
  fetch((stage + STAGES - 1) % STAGES);
  const int x_stage = (unit - begin) % 2;
  const unsigned xs = base + STAGES * W_STAGE + x_stage * X_STAGE;
  unsigned scale[MT][2], bias[MT][2];
#pragma unroll
  for (int m = 0; m < MT; ++m)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      scale[m][i] = scale_bits[m][i] * 0x10001u;
      bias[m][i] = bias_bits[m][i] * 0x10001u;
    }
  if (unit + 1 < end) {
    if (chunk + 1 == chunks) scale_place = find(tile_index + 1);
    load_scales((chunk + 1) % chunks);
  }
  uint4 words[MT][2]; // 4 bits
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    unsigned a[MT][4][4];
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = (group * MT + m) * 64 + warp * 16 + i * 8 + g;
        const char* row = w_ring + stage * W_STAGE + r * BYTES;
        auto value = [&](unsigned pair) { return fused<T>(fused<T>(pair, ONE, MINUS), scale[m][i], bias[m][i]); };
        if constexpr (BITS == 4) {
          if (half == 0) words[m][i] = *(const uint4*)(row + c * 16);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const uint4 q = words[m][i];
            const unsigned w = half ? (j ? q.w : q.z) : (j ? q.y : q.x);
            a[m][2 * j][i] = value(codes(w, 0x000F000F, MAGIC));
            a[m][2 * j][i + 2] = value(codes(w >> 4, 0x000F000F, MAGIC));
            a[m][2 * j + 1][i] = value(codes(w >> 8, 0x000F000F, MAGIC));
            a[m][2 * j + 1][i + 2] = value(codes(w >> 12, 0x000F000F, MAGIC));
          }
        } else {
          const uint4 q = *(const uint4*)(row + ((2 * c + half) ^ r % 2) * 16);
          const unsigned ws[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            if constexpr (is_bf16<T>) { // a code is exact by itself
              auto code = [&](int k) { return __uint_as_float(__byte_perm(ws[j], 0x4B000000, 0x7540 | k)) - 8388608.f; };
              a[m][j][i] = fused<T>(pair<T>(code(0), code(1)), scale[m][i], bias[m][i]);
              a[m][j][i + 2] = fused<T>(pair<T>(code(2), code(3)), scale[m][i], bias[m][i]);
            } else {
              a[m][j][i] = value(__byte_perm(ws[j], 0x64646464, 0x4140));
              a[m][j][i + 2] = value(__byte_perm(ws[j], 0x64646464, 0x4342));
            }
          }
        }
      }
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < 4; ++k)
#pragma unroll
      for (int m = 0; m < MT; ++m)
        multiply<T>(acc[m], a[m][k], cores(xs + (half * 4 + k) * MR * 32, MR * 16), chunk != from_chunk || half + k > 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    if (half == 0 && unit + 1 < end && has_x) {
      store_x(1 - x_stage);
      load_x((chunk + 2) % chunks);
    }
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  hold(acc);
)cu";

// After a tile's last piece, or the block's. Each result is rounded before it is gated or added to, as by ops of their
// own.
constexpr const char* end_code = R"cu(
  if (++chunk < chunks && unit + 1 < end) continue;
  const bool whole = from_chunk == 0 && chunk == chunks;
  bool mine = whole;
  if (!whole) {
    constexpr int FOURS = MT * MR / 8;
    const int first = block_of(tile_index * chunks), last = block_of(tile_index * chunks + chunks - 1);
    auto slot = [&](int block) { // a block has at most two parts of tiles: its first, and its last
      const int which = start_of(block) / chunks == tile_index ? 0 : 1;
      return (float4*)sums + (long)(2 * block + which) * FOURS * THREADS + t;
    };
    float4* to = slot(blockIdx.x);
#pragma unroll
    for (int i = 0; i < FOURS; ++i) {
      const float* from = &acc[i / (MR / 8)][i % (MR / 8) * 4];
      __stcg(to + i * THREADS, make_float4(from[0], from[1], from[2], from[3]));
    }
    __shared__ unsigned before;
    __threadfence();
    __syncthreads();
    if (t == 0) before = atomicInc((unsigned*)counters + tile_index, last - first);
    __syncthreads();
    mine = before == last - first;
    if (mine) {
      __threadfence();
#pragma unroll
      for (int i = 0; i < MT * MR / 2; ++i) acc[i / (MR / 2)][i % (MR / 2)] = 0;
      for (int block = first; block <= last; ++block) {
        const float4* from = slot(block);
#pragma unroll
        for (int i = 0; i < FOURS; ++i) {
          const float4 part = __ldcg(from + i * THREADS);
          float* sum = &acc[i / (MR / 8)][i % (MR / 8) * 4];
          sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
        }
      }
    }
  }
  if (mine) {
    const int N = place.N;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
      unsigned twos[MR / 8][GATED ? 1 : 2]; // of a row, once the lanes have exchanged them
#pragma unroll
      for (int e = 0; e < MR / 8; ++e)
#pragma unroll
        for (int i = 0; i < (GATED ? 1 : 2); ++i) {
          const float* y = &acc[m][e * 4];
          float two[2] = {y[2 * i], y[2 * i + 1]};
          if constexpr (GATED) {
#pragma unroll
            for (int q = 0; q < 2; ++q) {
              const float gate = float(T(y[q]));
              two[q] = gate / (1 + expf(-gate)) * float(T(y[2 + q]));
            }
          }
          asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(twos[e][i]) : "r"(pair<T>(two[0], two[1])));
        }
      const int n0 = place.tile * OUTPUTS + ((group * MT + m) * 64 + warp * 16) / (GATED ? 2 : 1) + 2 * c;
#pragma unroll
      for (int e = 0; e < MR / 8; ++e)
#pragma unroll
        for (int i = 0; i < (GATED ? 1 : 2); ++i) {
          const int row = e * 8 + g, n = n0 + i * 8;
          if (row >= M || n >= N) continue;
          const long at = (long)row * N + n;
          T two[2];
          memcpy(two, &twos[e][i], 4);
          if constexpr (ADDED) {
            two[0] = T(float(added[at]) + float(two[0]));
            if (n + 1 < N) two[1] = T(float(added[at + 1]) + float(two[1]));
          }
          if (N % 2 == 0) {
            memcpy(&twos[e][i], two, 4);
            *(unsigned*)(place.out + at) = twos[e][i];
          } else {
            place.out[at] = two[0];
            if (n + 1 < N) place.out[at + 1] = two[1];
          }
        }
    }
  }
  chunk = from_chunk = 0;
  place = find(++tile_index);
}
asm volatile("cp.async.wait_all;" ::: "memory");
)cu";

/** d[64,rows] += a[64,16] b[16,rows], a of shared memory or of registers. */
std::string multiply_code(int rows) {
  std::string registers, operands;
  const int count = rows / 2;
  for (int i = 0; i < count; ++i) {
    registers += fmt::format("{}%{}", i ? "," : "", i);
    operands += fmt::format("{}\"+f\"(d[{}])", i ? "," : "", i);
  }
  std::string text;
  for (const bool shared : {true, false}) {
    text += fmt::format(
        "template <typename T> __device__ inline void multiply(float (&d)[{}], {}, unsigned long long b, bool adds) {{\n",
        count,
        shared ? "unsigned long long a" : "const unsigned (&a)[4]");
    const int n = count;
    for (const bool bf16 : {true, false}) {
      text += fmt::format(
          "{} asm volatile(\"{{.reg .pred p;\\nsetp.ne.b32 p, %{}, 0;\\n"
          "wgmma.mma_async.sync.aligned.m64n{}k16.f32.{}.{} {{{}}}, {}, %{}, p, 1, 1{};\\n}}\"\n: {} : {}, \"l\"(b), "
          "\"r\"((int)adds));\n",
          bf16 ? "if constexpr (is_bf16<T>)" : "else",
          shared ? n + 2 : n + 5,
          rows,
          bf16 ? "bf16" : "f16",
          bf16 ? "bf16" : "f16",
          registers,
          shared ? fmt::format("%{}", n) : fmt::format("{{%{},%{},%{},%{}}}", n, n + 1, n + 2, n + 3),
          shared ? n + 1 : n + 4,
          shared ? ", 0, 0" : ", 0",
          operands,
          shared ? "\"l\"(a)" : "\"r\"(a[0]), \"r\"(a[1]), \"r\"(a[2]), \"r\"(a[3])");
    }
    text += "}\n";
  }
  return text;
}

// Where a matrix lies in shared memory (PTX ISA, "Matrix Descriptor Format"), K along its rows.
constexpr const char* descriptor_code = R"cu(
// Rows of 128 bytes, whose 16-byte parts are swapped by the row's place among eight.
__device__ inline unsigned long long swizzled(unsigned at) {
  return (at & 0x3FFFF) >> 4 | 1ull << 16 | (1024ull >> 4) << 32 | 1ull << 62;
}
// Eights of rows by 16 bytes, 128 bytes each, those of the next rows behind; `next` bytes on, those of the next columns.
__device__ inline unsigned long long cores(unsigned at, unsigned next) {
  return (at & 0x3FFFF) >> 4 | (unsigned long long)(next >> 4) << 16 | (128ull >> 4) << 32;
}
template <int A, int B>
__device__ inline void hold(float (&x)[A][B]) { // the compiler reads none of them before
#pragma unroll
  for (int i = 0; i < A; ++i)
#pragma unroll
    for (int j = 0; j < B; ++j) asm volatile("" : "+f"(x[i][j])::"memory");
}
template <typename T>
__device__ inline unsigned fused(unsigned a, unsigned b, unsigned c) { // a * b + c, twice, each rounded once
  unsigned d;
  if constexpr (is_bf16<T>) {
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  } else {
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  }
  return d;
}
)cu";

struct Kind {
  bool codes;
  End end;
  int count; // of matrices
  int shared; // bytes of a block's memory
  int rows; // of x: 8, 16, 32 or 64
  int blocks; // at once on a multiprocessor

  auto operator<=>(const Kind&) const = default;
};

Kernel kernel_of(const Kind& kind) {
  const int outputs = kind.end == End::gated ? 1 : kind.count;
  std::vector<std::string> inputs{"x"}, names;
  for (int i = 0; i < kind.count; ++i) {
    inputs.push_back(fmt::format("f{}", i));
    if (kind.codes) {
      inputs.insert(inputs.end(), {fmt::format("s{}", i), fmt::format("b{}", i)});
    }
  }
  const auto pick = [&](int from, const char* suffix) {
    auto text = fmt::format("place.w{1} = f{0};\n", from, suffix);
    return kind.codes ? text + fmt::format("place.s{1} = s{0};\nplace.b{1} = b{0};\n", from, suffix) : text;
  };
  std::string ends = fmt::format(
      "constexpr bool GATED = {}, ADDED = {};\n", kind.end == End::gated, kind.end == End::added);
  std::string tiles = "const int tiles = 0", find = fmt::format(
      "constexpr unsigned ONE = is_bf16<T> ? 0x3F803F80 : 0x3C003C00, MINUS = is_bf16<T> ? 0xC300C300 : 0xE400E400;\n"
      "struct Place {{ const {} *w, *w2; const T *s, *s2, *b, *b2; T* out; int N, tile; }};\n"
      "auto find = [&](int tile) {{\nPlace place;\nplace.N = f0_shape[0];\nplace.out = o0;\n{}",
      kind.codes ? "unsigned" : "T",
      pick(0, ""));
  for (int i = 0; i < outputs; ++i) {
    names.push_back(fmt::format("o{}", i));
    tiles += fmt::format(" + (f{}_shape[0] + OUTPUTS - 1) / OUTPUTS", i);
    if (i > 0) {
      find += fmt::format(
          "if (const int own = (f{0}_shape[0] + OUTPUTS - 1) / OUTPUTS; tile >= own) {{\n"
          "tile -= own;\nplace.N = f{1}_shape[0];\nplace.out = o{1};\n{2}",
          i - 1,
          i,
          pick(i, ""));
    }
  }
  find += std::string(outputs - 1, '}') + "\n";
  if (kind.end == End::gated) {
    find += pick(1, "2");
  }
  find += "place.tile = tile;\nreturn place;\n};\n";
  if (kind.end == End::added) {
    inputs.push_back("added");
  } else {
    find += "const T* added = nullptr;\n";
  }
  inputs.insert(inputs.end(), {"counters", "sums"});
  return Kernel(
      "hopper_matmul",
      inputs,
      names,
      ends + sizes_code + tiles + ";\n" + find + begin_code + (kind.codes ? codes_loop : dense_loop) + end_code,
      std::string(device_code) + copy_code + descriptor_code + multiply_code(kind.rows),
      kind.shared,
      kind.blocks);
}

/** What launches leave for their last blocks: zeros to count in, and sums. Those that may run at the same time, which are
 * few, have different ones. */
struct Scratch {
  mx::array counters, sums;
};

const Scratch& scratch_of(int tiles, int floats) {
  constexpr int most_tiles = 4096, count = 16;
  thread_local std::vector<Scratch> all;
  thread_local int next = 0;
  if (tiles > most_tiles) {
    throw std::runtime_error("[matmul] more tiles than counters");
  }
  if (all.empty()) {
    for (int i = 0; i < count; ++i) {
      all.push_back({mx::zeros({most_tiles}, mx::int32), mx::zeros({1}, mx::float32)});
      mx::eval(all.back().counters, all.back().sums);
    }
  }
  auto& scratch = all[next++ % count];
  if (scratch.sums.shape(0) < floats) {
    scratch.sums = mx::zeros({floats}, mx::float32);
    mx::eval(scratch.sums);
  }
  return scratch;
}

int chunk_of(const Factor& factor) {
  return factor.bits == 16 ? 64 : 128;
}

} // namespace

bool hopper_multiplies(const mx::array& x, const Factor& factor) {
  return compute_capability() == 90 && x.shape(1) % chunk_of(factor) == 0 && x.shape(1) > 0;
}

std::vector<mx::array> hopper_matmul(
    const mx::array& x,
    const std::vector<Factor>& factors,
    End end,
    const std::optional<mx::array>& added) {
  thread_local std::map<Kind, Kernel> kernels;
  const auto& first = factors[0];
  const int rows = x.shape(0), eights = rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
  const bool codes = first.bits < 16;
  constexpr int halves = 1; // MT: a warp group's 64s of a tile
  const int tile = 128 * halves, outputs = end == End::gated ? tile / 2 : tile;
  const int chunk = chunk_of(first), stages = 4;
  const int w_stage = tile * chunk * first.bits / 8, x_stage = eights * chunk * 2;
  const int shared = 1024 + stages * w_stage + (codes ? 2 : stages) * x_stage;
  const Kind kind{codes, end, int(factors.size()), shared, eights, 2};
  auto found = kernels.find(kind);
  if (found == kernels.end()) {
    found = kernels.emplace(kind, kernel_of(kind)).first;
  }
  int tiles = 0;
  std::vector<mx::array> inputs{x};
  std::vector<mx::Shape> shapes;
  for (const auto& factor : factors) {
    inputs.push_back(factor.w);
    if (codes) {
      inputs.insert(inputs.end(), {*factor.scales, *factor.biases});
    }
    if (shapes.empty() || end != End::gated) {
      tiles += (factor.w.shape(0) + outputs - 1) / outputs;
      shapes.push_back({rows, factor.w.shape(0)});
    }
  }
  if (added) {
    inputs.push_back(*added);
  }
  const int blocks = std::min(tiles * (x.shape(1) / chunk), multiprocessors() * kind.blocks);
  const auto& scratch = scratch_of(tiles, blocks * 2 * tile * eights);
  inputs.insert(inputs.end(), {scratch.counters, scratch.sums});
  const std::vector<mx::Dtype> types(shapes.size(), x.dtype());
  return found->second(
      inputs,
      shapes,
      types,
      {blocks * 256, 1, 1},
      {256, 1, 1},
      {{"T", x.dtype()},
       {"BITS", first.bits},
       {"GROUP", codes ? first.group_size : 1},
       {"MR", eights},
       {"MT", halves},
       {"STAGES", stages}});
}

} // namespace parallm::cuda
