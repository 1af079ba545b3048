// Attention of decoding rows over the paged KV pool (flash-decoding: a row's keys in pieces of fixed size, whose
// partial sums a second kernel adds up), and what goes before it.
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/ops.h"

#include <algorithm>
#include <bit>
#include <string>

namespace parallm::cuda {

namespace {

// Keys of one piece: what a thread block reads. Pieces begin at multiples of it, so that a row's sums don't depend on
// the batch.
constexpr int piece = 512;

constexpr const char* attention_code = R"cu(
__device__ inline int first_seen(int position, int window, int chunk) {
  int first = window > 0 ? max(position - window + 1, 0) : 0;
  return chunk > 0 ? max(first, position / chunk * chunk) : first;
}
// A learned sink takes its share of a sum (of greatest exponent m) but adds nothing to it: -> what to multiply by.
__device__ inline float share(float m, float l, bool has_sink, float sink) {
  if (!has_sink) return 1 / l;
  sink *= 1.44269504f;
  float top = fmaxf(m, sink);
  return exp2f(m - top) / (l * exp2f(m - top) + exp2f(sink - top));
}
// Its log, to base e.
__device__ inline float mass_of(float m, float l, bool has_sink, float sink) {
  float top = m;
  if (has_sink) {
    sink *= 1.44269504f;
    top = fmaxf(m, sink);
    l = l * exp2f(m - top) + exp2f(sink - top);
  }
  return (top + log2f(l)) * 0.693147181f;
}
)cu";

// A thread turns or copies two elements of a head. Each product is rounded, as in Rope::rotate.
constexpr const char* turn_code = R"cu(
struct Two { float a, b, cos, sin; };
template <typename T, int TURNED, bool TRADITIONAL>
__device__ inline Two read_two(const T* x, int pair, const float* cos, const float* sin) {
  if (pair >= TURNED / 2) return {float(x[2 * pair]), float(x[2 * pair + 1])};
  const int a = TRADITIONAL ? 2 * pair : pair, b = TRADITIONAL ? a + 1 : a + TURNED / 2;
  return {float(x[a]), float(x[b]), cos[pair], sin[pair]};
}
template <typename Y, int TURNED, bool TRADITIONAL>
__device__ inline void write_turned(Y* y, int pair, const Two& x) {
  if (pair < TURNED / 2) {
    const int a = TRADITIONAL ? 2 * pair : pair, b = TRADITIONAL ? a + 1 : a + TURNED / 2;
    y[a] = Y(__fsub_rn(__fmul_rn(x.a, x.cos), __fmul_rn(x.b, x.sin)));
    y[b] = Y(__fadd_rn(__fmul_rn(x.b, x.cos), __fmul_rn(x.a, x.sin)));
  } else {
    y[2 * pair] = Y(x.a);
    y[2 * pair + 1] = Y(x.b);
  }
}
)cu";

// Where FRESH, it first turns q and the sequence's own key, and writes that and its value to the pools: every block
// that reads them does so for itself.
// Eight shares of the work, a warp's or two, take tiles of 16 keys in turn. Keys are a's rows against 8 queries as b's
// columns, so both go from memory to registers as they lie: which dimensions a thread holds doesn't matter, as long as
// q and k agree. The weights then change sides (movmatrix) to multiply v, whose keys are paired up in registers.
constexpr const char* decode = R"cu(
constexpr int R = H / G, Q = 8 * NB, PARTS = (R + Q - 1) / Q, SHARES = 8;
constexpr bool EARLY = DV >= 64 && DV <= 128;
const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % 4, g = lane / 4;
const int row = blockIdx.z, kv = blockIdx.y / PARTS, h0 = kv * R + blockIdx.y % PARTS * Q;
const int heads = min(Q, (kv + 1) * R - h0);
const int last = positions[row], t = tokens[row], first = first_seen(last, WINDOW, CHUNK);
const int start = (first / PIECE + blockIdx.x) * PIECE;
const int from = max(first, start), to = min(last + 1, start + PIECE);
if (from >= to) return;
const int* blocks = table + (long)row * table_shape[1];
// Where all of a tile lies in one block, each lane reads one tile's.
constexpr bool IN_BLOCKS = BLOCK % 16 == 0;
static_assert(PIECE == 32 * 16);
int lane_block = 0;
if constexpr (IN_BLOCKS)
  if (const int p = start + lane * 16; p < to && p + 16 > from) lane_block = blocks[p / BLOCK];
auto tile_at = [&](int p) {
  return IN_BLOCKS ? (long)__shfl_sync(~0u, lane_block, (p - start) / 16) * BLOCK + p % BLOCK : 0;
};
auto place = [&](long tile, int p, int i) { // of key p + i, in the tile that begins at p
  const int key = min(max(p + i, from), to - 1);
  return (IN_BLOCKS ? tile + key - p : (long)blocks[key / BLOCK] * BLOCK + key % BLOCK) * G + kv;
};
uint4 qs[NB][D / 32];
const T* all_q = q + ((long)t * H + h0) * D;
int q_pitch = D;
if constexpr (FRESH) {
  __shared__ uint4 turned_q[Q * (D + 8) / 8]; // rows 16 bytes apart from whole banks
  T* turned = (T*)turned_q;
  const bool owns = last < to, copies = owns && threadIdx.x < DV / 2;
  const float *row_cos = (const float*)cos + (long)t * (TURNED / 2), *row_sin = (const float*)sin + (long)t * (TURNED / 2);
  const long slot = (long)slots[t] * G + kv;
  // All is asked for before the first is written.
  constexpr int EACH = ((Q + 1) * (D / 2) + WARPS * 32 - 1) / (WARPS * 32);
  const int count = (heads + owns) * (D / 2);
  Two twos[EACH];
  unsigned own_v;
#pragma unroll
  for (int e = 0; e < EACH; ++e)
    if (const int i = threadIdx.x + e * WARPS * 32, h = i / (D / 2); i < count)
      twos[e] = read_two<T, TURNED, TRADITIONAL>(
          h < heads ? all_q + h * D : (const T*)k + ((long)t * G + kv) * D, i % (D / 2), row_cos, row_sin);
  if (copies) own_v = ((const unsigned*)v)[((long)t * G + kv) * (DV / 2) + threadIdx.x];
#pragma unroll
  for (int e = 0; e < EACH; ++e)
    if (const int i = threadIdx.x + e * WARPS * 32, h = i / (D / 2); i < count)
      write_turned<T, TURNED, TRADITIONAL>(h < heads ? turned + h * (D + 8) : (T*)k_pool + slot * D, i % (D / 2), twos[e]);
  if (copies) ((unsigned*)v_pool)[slot * (DV / 2) + threadIdx.x] = own_v;
)cu";
// Where attention is to go on, the row's first block gives the queries as float32 too.
constexpr const char* open_queries = R"cu(
  if (blockIdx.x == 0)
    for (int i = threadIdx.x; i < heads * (D / 2); i += WARPS * 32)
      write_turned<float, TURNED, TRADITIONAL>(
          rotated + ((long)row * H + h0 + i / (D / 2)) * D, i % (D / 2),
          read_two<T, TURNED, TRADITIONAL>(all_q + i / (D / 2) * D, i % (D / 2), row_cos, row_sin));
)cu";
constexpr const char* decode_rest = R"cu(
  __syncthreads();
  all_q = turned;
  q_pitch = D + 8;
}
#pragma unroll
for (int n = 0; n < NB; ++n)
#pragma unroll
  for (int j = 0; j < D / 32; ++j)
    qs[n][j] = n * 8 + g < heads ? *(const uint4*)(all_q + (n * 8 + g) * q_pitch + c * 8 + j * 32) : make_uint4(0, 0, 0, 0);
// As many shares' sums side by side as fit.
constexpr int SIZE = Q * (DV + 1), SIDES = SIZE <= 1100 ? 8 : SIZE <= 2200 ? 4 : SIZE <= 4400 ? 2 : 1;
static_assert(WARPS == SHARES || SIDES == SHARES);
__shared__ float tops[SHARES][Q], sums[SHARES][Q], totals[SIDES * SIZE];
auto top_of = [&](int h) {
  float top = tops[0][h];
  for (int i = 1; i < SHARES; ++i) top = fmaxf(top, tops[i][h]);
  return top;
};
auto dim_of = [&](int j, int i) {
  return j < DV / 64 * 4 ? j / 4 * 64 + g * 8 + j % 4 * 2 + i : DV / 64 * 64 + g * 4 + j % 4 * 2 + i;
};
#pragma unroll 1
for (int mine = warp; mine < SHARES; mine += WARPS) {
float out_sum[NB][DV / 16][4] = {}, m[NB][2], l[NB][2] = {};
#pragma unroll
for (int n = 0; n < NB; ++n) m[n][0] = m[n][1] = -INFINITY;
for (int p = start + mine * 16; p < to; p += SHARES * 16) {
  if (p + 16 <= from) continue;
  const long tile = tile_at(p);
  const T* v0 = v_pool + place(tile, p, 2 * c) * DV;
  const T* v1 = v_pool + place(tile, p, 2 * c + 1) * DV;
  const T* v2 = v_pool + place(tile, p, 2 * c + 8) * DV;
  const T* v3 = v_pool + place(tile, p, 2 * c + 9) * DV;
  uint4 vs[EARLY ? DV / 64 : 1][4]; // asked for before the scores are computed
  if constexpr (EARLY) {
#pragma unroll
    for (int j = 0; j < DV / 64; ++j) {
      vs[j][0] = ((const uint4*)v0)[j * 8 + g];
      vs[j][1] = ((const uint4*)v1)[j * 8 + g];
      vs[j][2] = ((const uint4*)v2)[j * 8 + g];
      vs[j][3] = ((const uint4*)v3)[j * 8 + g];
    }
  }
  const T* k0 = k_pool + place(tile, p, g) * D + c * 8;
  const T* k1 = k_pool + place(tile, p, g + 8) * D + c * 8;
  uint4 ks[D / 32][2];
#pragma unroll
  for (int j = 0; j < D / 32; ++j) {
    ks[j][0] = *(const uint4*)(k0 + j * 32);
    ks[j][1] = *(const uint4*)(k1 + j * 32);
  }
  float s[NB][4] = {};
#pragma unroll
  for (int j = 0; j < D / 32; ++j) {
    const uint4 a = ks[j][0], b = ks[j][1];
#pragma unroll
    for (int n = 0; n < NB; ++n) {
      mma<T>(s[n], a.x, b.x, a.y, b.y, qs[n][j].x, qs[n][j].y);
      mma<T>(s[n], a.z, b.z, a.w, b.w, qs[n][j].z, qs[n][j].w);
    }
  }
  unsigned w[NB][2];
  const bool in0 = p + g >= from && p + g < to, in1 = p + g + 8 >= from && p + g + 8 < to;
#pragma unroll
  for (int n = 0; n < NB; ++n) {
    float scale[2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float x = s[n][i] * __int_as_float(SCALE);
      if (SOFTCAP != 0) x = tanhf(x / __int_as_float(SOFTCAP)) * __int_as_float(SOFTCAP);
      s[n][i] = (i < 2 ? in0 : in1) ? x * 1.44269504f : -INFINITY;
    }
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float top = fmaxf(s[n][e], s[n][e + 2]);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 4));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 8));
      top = fmaxf(m[n][e], fmaxf(top, __shfl_xor_sync(~0u, top, 16)));
      scale[e] = exp2f(m[n][e] - top);
      m[n][e] = top;
      s[n][e] = exp2f(s[n][e] - top);
      s[n][e + 2] = exp2f(s[n][e + 2] - top);
      l[n][e] = l[n][e] * scale[e] + s[n][e] + s[n][e + 2];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
      asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(w[n][i]) : "r"(pair<T>(s[n][2 * i], s[n][2 * i + 1])));
#pragma unroll
    for (int j = 0; j < DV / 16; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) out_sum[n][j][i] *= scale[i % 2];
  }
#pragma unroll
  for (int j = 0; j < DV / 64; ++j) {
    uint4 a, b, d, e;
    if constexpr (EARLY) {
      a = vs[j][0], b = vs[j][1], d = vs[j][2], e = vs[j][3];
    } else {
      a = ((const uint4*)v0)[j * 8 + g], b = ((const uint4*)v1)[j * 8 + g];
      d = ((const uint4*)v2)[j * 8 + g], e = ((const uint4*)v3)[j * 8 + g];
    }
    const unsigned as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
    const unsigned ds[4] = {d.x, d.y, d.z, d.w}, es[4] = {e.x, e.y, e.z, e.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int n = 0; n < NB; ++n)
        mma<T>(out_sum[n][j * 4 + i], __byte_perm(as[i], bs[i], 0x5410), __byte_perm(as[i], bs[i], 0x7632),
               __byte_perm(ds[i], es[i], 0x5410), __byte_perm(ds[i], es[i], 0x7632), w[n][0], w[n][1]);
  }
  if constexpr (DV % 64 != 0) {
    constexpr int J = DV / 64 * 16;
    uint2 a = ((const uint2*)v0)[J + g], b = ((const uint2*)v1)[J + g];
    uint2 d = ((const uint2*)v2)[J + g], e = ((const uint2*)v3)[J + g];
    const unsigned as[2] = {a.x, a.y}, bs[2] = {b.x, b.y}, ds[2] = {d.x, d.y}, es[2] = {e.x, e.y};
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int n = 0; n < NB; ++n)
        mma<T>(out_sum[n][DV / 64 * 4 + i], __byte_perm(as[i], bs[i], 0x5410), __byte_perm(as[i], bs[i], 0x7632),
               __byte_perm(ds[i], es[i], 0x5410), __byte_perm(ds[i], es[i], 0x7632), w[n][0], w[n][1]);
  }
}
#pragma unroll
for (int n = 0; n < NB; ++n)
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    float x = l[n][e];
    x += __shfl_xor_sync(~0u, x, 4);
    x += __shfl_xor_sync(~0u, x, 8);
    x += __shfl_xor_sync(~0u, x, 16);
    if (g == 0) {
      tops[mine][n * 8 + 2 * c + e] = m[n][e];
      sums[mine][n * 8 + 2 * c + e] = x;
    }
  }
if constexpr (WARPS < SHARES) { // scaled when they are added up
#pragma unroll
  for (int n = 0; n < NB; ++n)
#pragma unroll
    for (int j = 0; j < DV / 16; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        totals[mine * SIZE + (n * 8 + 2 * c + i % 2) * (DV + 1) + dim_of(j, i / 2)] = out_sum[n][j][i];
} else {
  __syncthreads();
  for (int first_warp = 0; first_warp < WARPS; first_warp += SIDES) {
    if (warp / SIDES * SIDES == first_warp) {
#pragma unroll
      for (int n = 0; n < NB; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int h = n * 8 + 2 * c + e;
          const float scale = exp2f(m[n][e] - top_of(h));
#pragma unroll
          for (int j = 0; j < DV / 16; ++j)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              float* to_sum = &totals[warp % SIDES * SIZE + h * (DV + 1) + dim_of(j, i)];
              *to_sum = __fmul_rn(out_sum[n][j][2 * i + e], scale) + (first_warp == 0 ? 0.f : *to_sum);
            }
        }
    }
    __syncthreads();
  }
}
}
if constexpr (WARPS < SHARES) __syncthreads();
for (int i = threadIdx.x; i < heads * DV; i += WARPS * 32) {
  const int h = i / DV, dim = i % DV;
  const float top = top_of(h);
  float sum = 0;
  for (int k = 0; k < SHARES; ++k) sum += sums[k][h] * exp2f(tops[k][h] - top);
  const long at = (long)row * H + h0 + h;
  float total = 0;
  for (int k = 0; k < SIDES; ++k) {
    const float part = totals[k * SIZE + h * (DV + 1) + dim];
    total += WARPS < SHARES ? __fmul_rn(part, exp2f(tops[k][h] - top)) : part;
  }
)cu";

constexpr const char* decode_whole = R"cu(
  out[at * DV + dim] = T(total * share(top, sum, SINKS, sinks[h0 + h]));
)cu";

constexpr const char* open_mass = R"cu(
  if (dim == 0) masses[at] = mass_of(top, sum, SINKS, sinks[h0 + h]);
)cu";

constexpr const char* decode_piece = R"cu(
  const long part = at * gridDim.x + blockIdx.x;
  parts[part * DV + dim] = total;
  if (dim == 0) {
    stats[part * 2] = top;
    stats[part * 2 + 1] = sum;
  }
)cu";

constexpr const char* add_pieces = R"cu(
const int row = blockIdx.y, h = blockIdx.x, most = parts_shape[2];
const int last = positions[row], first = first_seen(last, WINDOW, CHUNK);
const int count = last / PIECE - first / PIECE + 1;
const long at = (long)row * gridDim.x + h;
const float* stat = stats + at * most * 2;
float top = stat[0];
for (int i = 1; i < count; ++i) top = fmaxf(top, stat[2 * i]);
float sum = 0;
for (int i = 0; i < count; ++i) sum += stat[2 * i + 1] * exp2f(stat[2 * i] - top);
const float scale = share(top, sum, SINKS, sinks[h]);
for (int dim = threadIdx.x; dim < DV; dim += blockDim.x) {
  float total = 0;
  for (int i = 0; i < count; ++i) total += parts[(at * most + i) * DV + dim] * exp2f(stat[2 * i] - top);
  out[at * DV + dim] = T(total * scale);
)cu";

constexpr const char* open_added_mass = R"cu(
  if (dim == 0) masses[at] = mass_of(top, sum, SINKS, sinks[h]);
)cu";

constexpr const char* rotate = R"cu(
constexpr int QK = (H + G) * (D / 2), ALL = QK + G * (DV / 2);
const long index = (long)blockIdx.x * blockDim.x + threadIdx.x;
if (index >= (long)slots_shape[0] * ALL) return;
const int t = index / ALL, i = index % ALL;
if (i >= QK) {
  ((unsigned*)v_pool)[(long)slots[t] * G * (DV / 2) + i - QK] = ((const unsigned*)v)[(long)t * G * (DV / 2) + i - QK];
  return;
}
const int head = i / (D / 2), pair = i % (D / 2);
const bool is_q = head < H;
const T* x = is_q ? q + ((long)t * H + head) * D : k + ((long)t * G + head - H) * D;
T* y = is_q ? out + ((long)t * H + head) * D : (T*)k_pool + ((long)slots[t] * G + head - H) * D;
write_turned<T, TURNED, TRADITIONAL>(
    y, pair, read_two<T, TURNED, TRADITIONAL>(x, pair, cos + (long)t * (TURNED / 2), sin + (long)t * (TURNED / 2)));
)cu";

constexpr const char* read = R"cu(
const long index = (long)blockIdx.x * blockDim.x + threadIdx.x;
if (index < (long)slots_shape[0] * WIDTH)
  ((uint4*)out)[index] = ((const uint4*)pool)[(long)slots[index / WIDTH] * WIDTH + index % WIDTH];
)cu";

int up(int n, int step) {
  return (n + step - 1) / step * step;
}

} // namespace

bool attends(mx::Dtype dtype, int head_dim, int v_head_dim) {
  const auto fits = [](int dim) { return dim >= 32 && dim <= 256 && dim % 32 == 0; };
  return (dtype == mx::float16 || dtype == mx::bfloat16) && fits(head_dim) && fits(v_head_dim);
}

mx::array rotate_and_write(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const mx::array& cos,
    const mx::array& sin,
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& slots,
    int rope_dims,
    bool rope_traditional) {
  thread_local const Kernel kernel(
      "rotate_and_write", {"q", "k", "v", "cos", "sin", "k_pool", "v_pool", "slots"}, {"out"}, rotate, turn_code);
  const int heads = q.shape(1), groups = k.shape(1), dims = q.shape(2), v_dims = v.shape(2);
  const int threads = q.shape(0) * ((heads + groups) * (dims / 2) + groups * (v_dims / 2));
  return kernel(
      {q, k, v, cos, sin, k_pool, v_pool, slots},
      {q.shape()},
      {q.dtype()},
      {up(threads, 256), 1, 1},
      {256, 1, 1},
      {{"T", q.dtype()},
       {"H", heads},
       {"G", groups},
       {"D", dims},
       {"DV", v_dims},
       {"TURNED", rope_dims},
       {"TRADITIONAL", rope_traditional}})[0];
}

mx::array read_pool(const mx::array& pool, const mx::array& slots, const mx::array& after) {
  thread_local const Kernel kernel("read_pool", {"pool", "slots", "after"}, {"out"}, read);
  const int count = slots.shape(0);
  const int width = pool.shape(1) * pool.shape(2) / 8; // of a row, in 16 bytes
  return kernel(
      {pool, slots, after},
      {{count, pool.shape(1), pool.shape(2)}},
      {pool.dtype()},
      {up(count * width, 256), 1, 1},
      {256, 1, 1},
      {{"WIDTH", width}})[0];
}

mx::array paged_decode(
    const mx::array& q,
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& tokens,
    const mx::array& positions,
    const mx::array& table,
    const std::optional<mx::array>& sinks,
    int spread,
    const AttentionShape& shape,
    const std::optional<Fresh>& fresh,
    OpenAttention* open) {
  static const std::string header = std::string(device_code) + attention_code + turn_code;
  static const std::vector<std::string> inputs = {
      "q", "k_pool", "v_pool", "tokens", "positions", "table", "sinks", "k", "v", "cos", "sin", "slots"};
  static const std::vector<std::string> add_inputs = {"parts", "stats", "positions", "sinks"};
  static const auto text = [](bool opens, const std::string& end) {
    return std::string(decode) + (opens ? open_queries : "") + decode_rest + end + "}\n";
  };
  static const auto added = [](bool opens) { return std::string(add_pieces) + (opens ? open_added_mass : "") + "}\n"; };
  constexpr int registers = 128; // so that a multiprocessor holds 16 warps
  thread_local const Kernel whole("decode_whole", inputs, {"out"}, text(false, decode_whole), header, 0, registers);
  thread_local const Kernel in_pieces(
      "decode_piece", inputs, {"parts", "stats"}, text(false, decode_piece), header, 0, registers);
  thread_local const Kernel add("add_pieces", add_inputs, {"out"}, added(false), header);
  thread_local const Kernel open_whole(
      "decode_open_whole",
      inputs,
      {"out", "masses", "rotated"},
      text(true, std::string(decode_whole) + open_mass),
      header,
      0,
      registers);
  thread_local const Kernel open_in_pieces(
      "decode_open_piece", inputs, {"parts", "stats", "rotated"}, text(true, decode_piece), header, 0, registers);
  thread_local const Kernel open_add("add_open_pieces", add_inputs, {"out", "masses"}, added(true), header);

  const int rows = tokens.shape(0), heads = q.shape(1), groups = k_pool.shape(1);
  const int dims = q.shape(2), v_dims = v_pool.shape(2), queries = heads / groups;
  const int blocks_of_queries = queries > 8 ? 2 : 1;
  const int parts = (queries + 8 * blocks_of_queries - 1) / (8 * blocks_of_queries);
  // Where one row's keys may begin within a piece, they touch one piece more.
  const bool from_start = shape.window == 0 && shape.chunk == 0;
  const int pieces = (spread + piece - 1) / piece + (from_start ? 0 : 1);
  // With many blocks, twice as many at once of half the warps: the same sums.
  const bool many = rows * groups * parts * pieces > 3 * multiprocessors();
  const int warps = many && 8 * blocks_of_queries * (v_dims + 1) <= 1100 ? 4 : 8;
  const auto& unread = positions;
  const auto sink = sinks ? *sinks : unread;
  const std::vector<std::pair<std::string, mx::fast::TemplateArg>> how = {
      {"T", q.dtype()},
      {"H", heads},
      {"G", groups},
      {"D", dims},
      {"DV", v_dims},
      {"NB", blocks_of_queries},
      {"BLOCK", shape.block_size},
      {"PIECE", piece},
      {"WINDOW", shape.window},
      {"CHUNK", shape.chunk},
      {"SCALE", std::bit_cast<int>(shape.scale)},
      {"SOFTCAP", std::bit_cast<int>(shape.softcap)},
      {"SINKS", sinks.has_value()},
      {"FRESH", fresh.has_value()},
      {"TURNED", fresh ? fresh->rope_dims : 0},
      {"TRADITIONAL", fresh && fresh->rope_traditional},
      {"WARPS", warps}};
  std::vector<mx::array> arrays = {q, k_pool, v_pool, tokens, positions, table, sink};
  if (fresh) {
    arrays.insert(arrays.end(), {fresh->k, fresh->v, fresh->cos, fresh->sin, fresh->slots});
  } else {
    arrays.insert(arrays.end(), 5, unread);
  }
  const std::tuple<int, int, int> grid{pieces * warps * 32, groups * parts, rows}, threads{warps * 32, 1, 1};
  std::vector<mx::Shape> results{{rows, heads, v_dims}};
  std::vector<mx::Dtype> types{q.dtype()};
  const auto rotated = fresh ? mx::Shape{rows, heads, dims} : mx::Shape{1};
  if (open) {
    results.push_back({rows, heads});
    types.push_back(mx::float32);
  }
  if (pieces == 1) {
    if (!open) {
      return whole(arrays, results, types, grid, threads, how)[0];
    }
    results.push_back(rotated);
    types.push_back(mx::float32);
    const auto all = open_whole(arrays, results, types, grid, threads, how);
    *open = {all[1], all[2]};
    return all[0];
  }
  std::vector<mx::Shape> shapes{{rows, heads, pieces, v_dims}, {rows, heads, pieces, 2}};
  if (open) {
    shapes.push_back(rotated);
  }
  const auto sums = (open ? open_in_pieces : in_pieces)(
      arrays, shapes, std::vector<mx::Dtype>(shapes.size(), mx::float32), grid, threads, how);
  const auto all = (open ? open_add : add)(
      {sums[0], sums[1], positions, sink}, results, types, {heads * 128, rows, 1}, {128, 1, 1}, how);
  if (open) {
    *open = {all[1], sums[2]};
  }
  return all[0];
}

} // namespace parallm::cuda
