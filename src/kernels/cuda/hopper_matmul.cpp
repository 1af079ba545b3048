// Matmuls of 17 to 64 rows on Hopper: the warp groups' instructions (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate", wgmma) take 64 of w's rows, and x as the other factor. Each block has an equal run of all the
// tiles' pieces of K, one after another, whatever the matrices' sizes ("stream-K", Osama et al., arXiv 2301.03598), so
// the GPU has no idle end; or whole tiles, where those divide well. Where several blocks share a tile, the last one to
// come adds up what all of them left in `sums`, in their order: a row's sums are in the same order with however many
// rows.
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/matmul_code.h"
#include "kernels/cuda/ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

namespace parallm::cuda {

namespace {

// A tile's rows are 64 of w's for each of the block's WG warp groups; where GATED, eights of both matrices in turn, so
// that a thread has a gate and what it gates. A unit is COLUMNS of a tile's K.
constexpr const char* sizes_code = R"cu(
constexpr int THREADS = 128 * WG, ROWS = 64 * WG, OUTPUTS = GATED ? ROWS / 2 : ROWS;
)cu";

// Then stands `find`, which says where a tile lies.
constexpr const char* begin_code = R"cu(
constexpr int BYTES = COLUMNS * BITS / 8, PARTS = BYTES / 16, STEP = THREADS / PARTS, COPIES = ROWS / STEP;
constexpr int X_PARTS = COLUMNS / 8, X_STEP = THREADS / X_PARTS;
constexpr int W_STAGE = ROWS * BYTES, X_STAGE = MR * COLUMNS * 2;
const int M = x_shape[0], K = x_shape[1], chunks = K / COLUMNS, t = threadIdx.x;
const int lane = t % 32, c = lane % 4, g = lane / 4, group = t / 128, warp = t % 128 / 32;
const int total = tiles * chunks;
auto start_of = [&](int block) { return int((long)total * block / gridDim.x); };
auto block_of = [&](int unit) { return int(((long)(unit + 1) * gridDim.x - 1) / total); };
const int begin = start_of(blockIdx.x), end = start_of(blockIdx.x + 1);
extern __shared__ char shared[];
const unsigned at0 = (unsigned)__cvta_generic_to_shared(shared), base = (at0 + 1023) / 1024 * 1024;
char* const w_ring = shared + (base - at0);

// Units are fetched ahead. They lie in columns of 128 bytes, whose parts of 16 are swapped by the row's place among
// eight, so that reads meet different banks.
int fetched = begin, fetch_chunk = begin % chunks;
Place fetch_place = find(begin / chunks);
const int w_part = t % PARTS, w_row = t / PARTS, x_part = t % X_PARTS, x_row = t / X_PARTS;
auto place_of = [](int part, int row, int rows) { return (part / 8 * rows + row) * 128 + (part ^ row) % 8 * 16; };
const unsigned w_to = base + place_of(w_part, w_row, ROWS);
const unsigned x_to = base + STAGES * W_STAGE + place_of(x_part, x_row, MR);
const unsigned long long once = read_once();
auto fetch = [&](int stage) {
  if (fetched < end) {
    const long skip = (long)fetch_chunk * BYTES + w_part * 16;
#pragma unroll
    for (int i = 0; i < COPIES; ++i) {
      const int r = w_row + i * STEP; // of the tile
      const int n = min(fetch_place.tile * OUTPUTS + (GATED ? r / 16 * 8 + r % 8 : r), fetch_place.N - 1);
      copy_16_once(stage * W_STAGE + (STEP % 8 == 0 ? w_to + i * STEP * 128 : base + place_of(w_part, r, ROWS)),
                   (const char*)(GATED && r % 16 >= 8 ? fetch_place.w2 : fetch_place.w) + (long)n * chunks * BYTES + skip,
                   once);
    }
#pragma unroll
    for (int i = 0; i < (MR + X_STEP - 1) / X_STEP; ++i)
      if (const int row = x_row + i * X_STEP; row < M) // what stands in others' places reaches no result
        copy_16(stage * X_STAGE + (X_STEP % 8 == 0 ? x_to + i * X_STEP * 128
                                                     : base + STAGES * W_STAGE + place_of(x_part, row, MR)),
                x + (long)row * K + fetch_chunk * COLUMNS + x_part * 8);
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

float acc[MR / 2];
int chunk = begin % chunks, from_chunk = chunk, tile_index = begin / chunks;
Place place = find(tile_index);
)cu";

constexpr const char* loop_code = R"cu(
for (int unit = begin, stage = 0, next = STAGES - 1; unit < end;
     ++unit, stage = stage + 1 == STAGES ? 0 : stage + 1, next = next + 1 == STAGES ? 0 : next + 1) {
  asm volatile("cp.async.wait_group %0;\nfence.proxy.async;" ::"n"(STAGES - 2) : "memory");
  __syncthreads();
  fetch(next);
  const unsigned long long xs = swizzled(base + STAGES * W_STAGE + stage * X_STAGE);
)cu";

constexpr const char* dense_multiply_code = R"cu(
  const unsigned long long ws = swizzled(base + stage * W_STAGE + group * 64 * 128);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
  for (int k = 0; k < COLUMNS / 16; ++k)
    multiply<T>(acc, ws + k / 4 * (ROWS * 8) + k % 4 * 2, xs + k / 4 * (MR * 8) + k % 4 * 2, chunk != from_chunk || k > 0);
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  hold(acc);
)cu";

// Before the loop: the scales and biases of the lane's two rows, eight groups at once, and the next eight, on their
// way.
constexpr const char* scales_code = R"cu(
constexpr unsigned MAGIC = is_bf16<T> ? 0x43004300 : 0x64006400; // 128 or 1024, to whose last bits a code is added
constexpr int EIGHT = 8 * GROUP / COLUMNS; // units
uint4 scales[2], biases[2], next_scales[2], next_biases[2];
auto load_scales = [&](const Place& from, int eight) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = group * 64 + warp * 16;
    const int n = from.tile * OUTPUTS + (GATED ? r / 2 : r + i * 8) + g;
    const long at = (long)min(n, from.N - 1) * (K / GROUP / 8) + eight;
    next_scales[i] = ((const uint4*)(GATED && i ? from.s2 : from.s))[at];
    next_biases[i] = ((const uint4*)(GATED && i ? from.b2 : from.b))[at];
  }
};
auto take_scales = [&] {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    scales[i] = next_scales[i];
    biases[i] = next_biases[i];
  }
};
auto twice = [&](const uint4& eight, int i) { // the i-th number, twice
  const unsigned two = i & 4 ? (i & 2 ? eight.w : eight.z) : (i & 2 ? eight.y : eight.x);
  return __byte_perm(two, two, i & 1 ? 0x3232 : 0x1010);
};
load_scales(place, chunk / EIGHT);
)cu";

// A lane turns its codes of each step's 16 columns into what the instruction takes of it: columns 2c, 2c + 1 and 2c +
// 8, 2c + 9 of rows g and g + 8. 64 columns are turned while the last ones are multiplied.
constexpr const char* codes_multiply_code = R"cu(
  if (chunk % EIGHT == 0 || unit == begin) {
    take_scales();
    if (chunk / EIGHT + 1 < chunks / EIGHT) {
      load_scales(place, chunk / EIGHT + 1);
    } else if (unit + chunks - chunk < end) {
      load_scales(find(tile_index + 1), 0);
    }
  }
  unsigned a[2][4][4];
#pragma unroll
  for (int part = 0; part < COLUMNS / 64; ++part) {
    unsigned(&now)[4][4] = a[part % 2];
    if (part > 1) asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); // has read these registers
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = group * 64 + warp * 16 + i * 8 + g;
      unsigned scale = 0, bias = 0;
      auto number = [&](unsigned codes) { return fused<T>(codes, scale, bias); };
      auto value = [&](unsigned codes) { return number(fused<T>(codes, ONE, MINUS)); };
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (k % (GROUP / 16) == 0) {
          const int at = chunk % EIGHT * (COLUMNS / GROUP) + (part * 64 + k * 16) / GROUP;
          scale = twice(scales[i], at);
          bias = twice(biases[i], at);
        }
        const int of_16 = BITS == 4 ? part * 2 + k / 2 : part * 4 + k; // bytes
        const uint4 q = *(const uint4*)(w_ring + stage * W_STAGE + (of_16 / 8 * ROWS + r) * 128 + (of_16 % 8 ^ g) * 16);
        if constexpr (BITS == 4) { // byte c of a word has columns 2c and 2c + 1
          const unsigned how = c * 0x1111 + 0x4400, first = k % 2 ? q.z : q.x, second = k % 2 ? q.w : q.y;
          now[k][i] = value(codes(__byte_perm(first, first >> 4, how), 0x000F000F, MAGIC));
          now[k][i + 2] = value(codes(__byte_perm(second, second >> 4, how), 0x000F000F, MAGIC));
        } else {
          const unsigned first = c / 2 ? q.y : q.x, second = c / 2 ? q.w : q.z, from = c % 2 * 2;
          if constexpr (is_bf16<T>) { // a code is exact by itself
            auto code = [&](unsigned w, unsigned b) { return __uint_as_float(__byte_perm(w, 0x4B000000, 0x7540 | from + b)) - 8388608.f; };
            now[k][i] = number(pair<T>(code(first, 0), code(first, 1)));
            now[k][i + 2] = number(pair<T>(code(second, 0), code(second, 1)));
          } else {
            const unsigned how = 0x4140 + from * 0x0101;
            now[k][i] = value(__byte_perm(first, 0x64646464, how));
            now[k][i + 2] = value(__byte_perm(second, 0x64646464, how));
          }
        }
      }
    }
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply<T>(acc, now[k], xs + part * (MR * 8) + k * 2, chunk != from_chunk || part + k > 0);
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
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
  // Two outputs of each of a thread's rows of x are added to: asked for early.
  const int N = place.N, n0 = place.tile * OUTPUTS + (group * 64 + warp * 16) / (GATED ? 2 : 1) + 2 * c;
  unsigned more[ADDED ? MR / 8 : 1][2] = {};
  auto ask_more = [&] {
    if constexpr (ADDED) {
#pragma unroll
      for (int e = 0; e < MR / 8; ++e)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int row = e * 8 + g, n = n0 + i * 8;
          const unsigned short* from = (const unsigned short*)added + (long)row * N + n;
          if (row < M && n < N) more[e][i] = N % 2 == 0 ? *(const unsigned*)from : n + 1 < N ? from[0] | from[1] << 16 : from[0];
        }
    }
  };
  if (whole) ask_more();
  if (!whole) {
    constexpr int FOURS = MR / 8;
    const int first = block_of(tile_index * chunks), last = block_of(tile_index * chunks + chunks - 1);
    auto slot = [&](int block) { // a block has at most two parts of tiles: its first, and its last
      const int which = start_of(block) / chunks == tile_index ? 0 : 1;
      return (float4*)sums + (long)(2 * block + which) * FOURS * THREADS + t;
    };
    float4* to = slot(blockIdx.x);
#pragma unroll
    for (int i = 0; i < FOURS; ++i)
      __stcg(to + i * THREADS, make_float4(acc[4 * i], acc[4 * i + 1], acc[4 * i + 2], acc[4 * i + 3]));
    __shared__ unsigned before;
    __threadfence();
    __syncthreads();
    if (t == 0) before = atomicInc((unsigned*)counters + tile_index, last - first);
    __syncthreads();
    mine = before == last - first;
    if (mine) {
      __threadfence();
      ask_more();
      constexpr int AT_ONCE = WG < 3 ? 4 : 2; // blocks whose parts are asked for together
#pragma unroll
      for (int i = 0; i < MR / 2; ++i) acc[i] = 0;
      for (int block = first; block <= last; block += AT_ONCE) {
        float4 parts[AT_ONCE][FOURS];
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k)
#pragma unroll
          for (int i = 0; i < FOURS; ++i)
            if (block + k <= last) parts[k][i] = __ldcg(slot(block + k) + i * THREADS);
#pragma unroll
        for (int k = 0; k < AT_ONCE; ++k)
#pragma unroll
          for (int i = 0; i < FOURS; ++i) {
            if (block + k > last) continue;
            acc[4 * i] += parts[k][i].x, acc[4 * i + 1] += parts[k][i].y;
            acc[4 * i + 2] += parts[k][i].z, acc[4 * i + 3] += parts[k][i].w;
          }
      }
    }
  }
  if (mine) {
    unsigned twos[MR / 8][GATED ? 1 : 2]; // of a row of x, once the lanes have exchanged them
#pragma unroll
    for (int e = 0; e < MR / 8; ++e)
#pragma unroll
      for (int i = 0; i < (GATED ? 1 : 2); ++i) {
        const float* y = &acc[e * 4];
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
          T from[2];
          memcpy(from, &more[e][i], 4);
#pragma unroll
          for (int q = 0; q < 2; ++q) two[q] = T(float(from[q]) + float(two[q]));
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
template <int N>
__device__ inline void hold(float (&x)[N]) { // the compiler reads none of them before
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
__device__ inline void copy_16(unsigned to, const void* from) { // later, to shared memory
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
__device__ inline void copy_16_once(unsigned to, const void* from, unsigned long long once) { // with read_once's hint
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "l"(once) : "memory");
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
  int rows; // of x, at most: 32 or 64

  auto operator<=>(const Kind&) const = default;
};

Kernel kernel_of(const Kind& kind) {
  const int outputs = kind.end == End::gated ? 1 : kind.count;
  auto inputs = operand_names(kind.count, kind.codes);
  std::vector<std::string> names;
  const auto pick = [&](int from, const char* suffix) {
    auto text = fmt::format("place.w{1} = f{0};\n", from, suffix);
    return kind.codes ? text + fmt::format("place.s{1} = s{0};\nplace.b{1} = b{0};\n", from, suffix) : text;
  };
  std::string ends =
      fmt::format("constexpr bool GATED = {}, ADDED = {};\n", kind.end == End::gated, kind.end == End::added);
  std::string
      tiles = "const int tiles = 0",
      find = fmt::format(
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
      ends + sizes_code + tiles + ";\n" + find + begin_code + (kind.codes ? scales_code : "") + loop_code +
          (kind.codes ? codes_multiply_code : dense_multiply_code) + end_code,
      std::string(device_code) + copy_code + descriptor_code + multiply_code(kind.rows),
      kind.shared);
}

/** Where a launch's blocks leave sums for a tile's last one; as with counters. */
const mx::array& sums_of(int floats) {
  constexpr int count = 16;
  thread_local std::vector<mx::array> all(count, mx::zeros({1}, mx::float32));
  thread_local int next = 0;
  auto& sums = all[next++ % count];
  if (sums.shape(0) < floats) {
    sums = mx::zeros({floats}, mx::float32);
    mx::eval(sums);
  }
  return sums;
}

/** A unit's columns, 0: there are none. */
int columns_of(const mx::array& x, const Factor& factor) {
  const int inputs = x.shape(1);
  if (factor.bits == 16) {
    return inputs % 256 == 0 ? 256 : inputs % 64 == 0 ? 64 : 0;
  }
  // Scales are read by eights, 16 bytes; a unit has no more, and rows of 128 bytes or more.
  const int most = factor.bits == 4 ? 256 : 128;
  return inputs % (8 * factor.group_size) == 0 && inputs % most == 0 ? most : 0;
}

} // namespace

bool hopper_multiplies(const mx::array& x, const Factor& factor) {
  return compute_capability() == 90 && x.shape(1) > 0 && columns_of(x, factor) > 0 &&
      factor.w.shape(0) <= most_tiles * 64 / most_matrices;
}

std::vector<mx::array>
hopper_matmul(const mx::array& x, const std::vector<Factor>& factors, End end, const std::optional<mx::array>& added) {
  thread_local std::map<Kind, Kernel> kernels;
  const auto& first = factors[0];
  const int rows = x.shape(0), x_rows = rows <= 32 ? 32 : 64;
  const bool codes = first.bits < 16;
  int all = 0; // outputs
  for (const auto& factor : factors) {
    all += factor.w.shape(0);
  }
  // With more warp groups a block reads x less often; with fewer, fewer blocks share a tile. What was fastest on an
  // H100; the same for any number of rows, as the order of sums depends on it.
  const bool small = !codes && all / 64 <= multiprocessors();
  const int groups = small ? 1 : 2;
  const int tile = 64 * groups, outputs = end == End::gated ? tile / 2 : tile;
  const int columns = columns_of(x, first), w_stage = tile * columns * first.bits / 8;
  const int x_stage = x_rows * columns * 2;
  constexpr int memory = 216 << 10;
  const int stages = std::min(8, memory / (w_stage + x_stage)), shared = 1024 + stages * (w_stage + x_stage);
  const Kind kind{codes, end, int(factors.size()), shared, x_rows};
  auto found = kernels.find(kind);
  if (found == kernels.end()) {
    found = kernels.emplace(kind, kernel_of(kind)).first;
  }
  auto [inputs, shapes, tiles] = operands(x, factors, end, added, outputs);
  // Whole tiles cost no adding up: what is saved there is worth a few idle multiprocessors where memory is the limit.
  int blocks = std::min(tiles * (x.shape(1) / columns), multiprocessors());
  const int each = (tiles + blocks - 1) / blocks;
  if (small && 2 * tiles <= blocks) {
    blocks = 2 * tiles;
  } else if (small) {
    blocks = std::min(blocks, tiles);
  } else if (!codes && tiles % each == 0 && 5 * (tiles / each) >= 4 * blocks) {
    blocks = tiles / each;
  }
  inputs.insert(inputs.end(), {counters(tiles), sums_of(blocks * 2 * tile * x_rows)});
  const std::vector<mx::Dtype> types(shapes.size(), x.dtype());
  return found->second(
      inputs,
      shapes,
      types,
      {blocks * 128 * groups, 1, 1},
      {128 * groups, 1, 1},
      {{"T", x.dtype()},
       {"BITS", first.bits},
       {"GROUP", codes ? first.group_size : 1},
       {"MR", x_rows},
       {"WG", groups},
       {"COLUMNS", columns},
       {"STAGES", stages}});
}

} // namespace parallm::cuda
