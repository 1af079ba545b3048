// Extended Mind attention (arXiv 2406.02332) in two launches. The first computes all products of queries and keys, each
// key read once for up to 32 queries, and what is greatest in each tile of 16 keys and in each chunk of 256. The second
// finds a query's memories, its softmax and its sum: the k first chunks by their greatest hold the k first tiles, and
// those the k first keys, as each chunk (tile) before another has a key that goes before all of that other's. So it
// looks at few numbers, however many keys there are.
#include "kernels/cuda/device_code.h"
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/ops.h"
#include "kernels/rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <optional>
#include <string>

namespace parallm::cuda {

namespace {

constexpr int tile = 16, chunk = 256;
constexpr int most_items = 4096; // of a selection: `greatest` holds them in shared memory
constexpr int most_products = 64 << 20; // alive at once: 256 MB

// Eight warps of two tiles each. Keys are a's rows against 8 queries as b's columns, as in paged attention. A query, of
// float32, is scaled by a power of two and cut into numbers of 16 bits that add up to it (exactly for bfloat16, to 22
// bits for float16), so that its products are those of float32.
constexpr const char* products_code = R"cu(
constexpr int R = H / G, Q = 8 * NB, WARPS = 8, PARTS = is_bf16<T> ? 3 : 2, STEPS = D / 32;
constexpr int TILES = D <= 128 ? 2 : 1; // at once
const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % 4, g = lane / 4;
const int m0 = blockIdx.x * Q, chunk = blockIdx.y, kv = blockIdx.z, chunks = gridDim.y;
const int rows = q_shape[0] * R, count = keys_shape[1];
const bool by_dot = how[1] != 0;
const T* own_keys = keys + (long)kv * count * D + c * 8;
uint4 ks[TILES][STEPS][2];
auto load = [&](int first) { // tile
#pragma unroll
  for (int i = 0; i < TILES; ++i)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = min(chunk * 256 + (first + i) * 16 + e * 8 + g, count - 1);
#pragma unroll
      for (int j = 0; j < STEPS; ++j) ks[i][j][e] = *(const uint4*)(own_keys + key * D + j * 32);
    }
};
load(warp * 2); // asked for before the queries are cut
__shared__ uint4 cut[PARTS * NB * STEPS * 32]; // as the lanes read them
__shared__ float factors[256], unscale[Q], tops[WARPS][Q]; // of ranks; of products
factors[threadIdx.x] = by_dot ? 1.f : norms[kv * count + min(chunk * 256 + int(threadIdx.x), count - 1)];
for (int r = warp; r < Q; r += WARPS) {
  const int m = m0 + r;
  float x[STEPS];
  unsigned top = 0;
#pragma unroll
  for (int j = 0; j < STEPS; ++j) {
    x[j] = m < rows ? q[((long)(m / R) * H + kv * R + m % R) * D + j * 32 + lane] : 0.f;
    top = max(top, __float_as_uint(fabsf(x[j])));
  }
  top = __reduce_max_sync(~0u, top);
  const int exponent = min(max(268 - int(top >> 23), 1), 253); // the greatest becomes 2^14 to 2^15
  if (lane == 0) unscale[r] = __uint_as_float(unsigned(254 - exponent) << 23);
#pragma unroll
  for (int j = 0; j < STEPS; ++j) {
    float rest = x[j] * __uint_as_float(unsigned(exponent) << 23);
#pragma unroll
    for (int part = 0; part < PARTS; ++part) {
      const T rounded = T(rest);
      const int at = ((part * NB + r / 8) * STEPS + j) * 32 + r % 8 * 4 + lane / 8;
      ((T*)cut)[at * 8 + lane % 8] = rounded;
      rest -= float(rounded);
    }
  }
}
__syncthreads();
float best[NB][2];
#pragma unroll
for (int n = 0; n < NB; ++n) best[n][0] = best[n][1] = -INFINITY;
#pragma unroll
for (int turn = 0; turn < 2 / TILES; ++turn) {
  if (turn > 0) load(warp * 2 + turn);
  float s[TILES][NB][4] = {};
#pragma unroll 1
  for (int part = PARTS - 1; part >= 0; --part) // small ones first
#pragma unroll
    for (int j = 0; j < STEPS; ++j)
#pragma unroll
      for (int n = 0; n < NB; ++n) {
        const uint4 x = cut[((part * NB + n) * STEPS + j) * 32 + lane];
#pragma unroll
        for (int i = 0; i < TILES; ++i) {
          const uint4 a = ks[i][j][0], b = ks[i][j][1];
          mma<T>(s[i][n], a.x, b.x, a.y, b.y, x.x, x.y);
          mma<T>(s[i][n], a.z, b.z, a.w, b.w, x.z, x.w);
        }
      }
#pragma unroll
  for (int i = 0; i < TILES; ++i) {
    const int own_tile = chunk * 16 + warp * 2 + turn + i, first = own_tile * 16 + g;
    const float factor = factors[first % 256], next_factor = factors[first % 256 + 8];
#pragma unroll
    for (int n = 0; n < NB; ++n)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int r = n * 8 + 2 * c + e, m = m0 + r;
        const int row = kv * rows + m; // with all keys less than 2^31
        const float low = s[i][n][e] * unscale[r], high = s[i][n][e + 2] * unscale[r];
        if (m < rows) {
          products[row * (chunks * 256) + first] = low;
          products[row * (chunks * 256) + first + 8] = high;
        }
        float top = -INFINITY;
        if (first < count) top = low * factor;
        if (first + 8 < count) top = fmaxf(top, high * next_factor);
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 4));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 8));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 16));
        if (m < rows && g == 0) tile_tops[row * (chunks * 16) + own_tile] = top;
        best[n][e] = fmaxf(best[n][e], top);
      }
  }
}
#pragma unroll
for (int n = 0; n < NB; ++n)
#pragma unroll
  for (int e = 0; e < 2; ++e)
    if (g == 0) tops[warp][n * 8 + 2 * c + e] = best[n][e];
__syncthreads();
if (threadIdx.x < Q && m0 + int(threadIdx.x) < rows) {
  float top = tops[0][threadIdx.x];
  for (int i = 1; i < WARPS; ++i) top = fmaxf(top, tops[i][threadIdx.x]);
  chunk_tops[((long)kv * rows + m0 + threadIdx.x) * chunks + chunk] = top;
}
)cu";

// For a block of 256 threads.
constexpr const char* greatest_code = R"cu(
typedef unsigned long long Item; // of equal ranks the lesser place is greater; 0: none
__device__ inline Item make_item(float rank, int place) {
  const unsigned bits = __float_as_uint(rank + 0.f); // no -0
  return (Item)(bits >> 31 ? ~bits : bits | 0x80000000u) << 32 | ~(unsigned)place;
}
__device__ inline int place_of(Item item) {
  return (int)~(unsigned)item;
}
// The `wanted` greatest of up to 4096 items, which differ but for those of none, to `found`, in no order.
__device__ inline void greatest(const Item* items, int count, int wanted, Item* found) {
  __shared__ unsigned counts[2][8];
  __shared__ int taken;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) taken = 0;
  __syncthreads();
  Item least = 0; // two bits more in each turn, until `wanted` are not less
  int got = count;
  for (int bit = 62; bit >= 0 && got > wanted; bit -= 2) {
    const Item one = least + ((Item)1 << bit), two = least + ((Item)2 << bit), three = least + ((Item)3 << bit);
    unsigned more = 0; // three counts of 10 bits
    for (int i = threadIdx.x; i < count; i += 256) {
      const Item x = items[i];
      more += (x >= one ? 1u : 0u) + (x >= two ? 1u << 10 : 0u) + (x >= three ? 1u << 20 : 0u);
    }
    more = __reduce_add_sync(~0u, more);
    unsigned* own_counts = counts[bit / 2 % 2];
    if (lane == 0) own_counts[warp] = more;
    __syncthreads();
    int sums[3] = {};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const unsigned x = own_counts[i];
      sums[0] += x & 1023;
      sums[1] += x >> 10 & 1023;
      sums[2] += x >> 20;
    }
    if (sums[2] >= wanted) {
      least = three;
      got = sums[2];
    } else if (sums[1] >= wanted) {
      least = two;
      got = sums[1];
    } else if (sums[0] >= wanted) {
      least = one;
      got = sums[0];
    }
  }
  for (int i = threadIdx.x; i < count; i += 256)
    if (items[i] >= least) found[atomicAdd(&taken, 1)] = items[i];
  __syncthreads();
}
)cu";

// A block of 256 threads for a head of a token.
constexpr const char* attend_code = R"cu(
constexpr int R = H / G, MOST = 4096, PAIRS = DV / 2, SLICES = 256 / PAIRS;
const int lane = threadIdx.x % 32, h = blockIdx.x, t = blockIdx.y, kv = h / R;
const int count = norms_shape[1], chunks = chunk_tops_shape[2], tiles = (count + 15) / 16, wanted = min(how[0], count);
const long row = (long)kv * q_shape[0] * R + t * R + h % R, head = (long)t * H + h;
const float* own_products = products + row * (chunks * 256);
const float* own_norms = norms + (long)kv * count;
const bool by_dot = how[1] != 0, sieved = how[2] != 0;
__shared__ Item items[MOST], found[MOST / 16];
__shared__ float scores[MOST / 16], sums[SLICES * DV];
float length = 0; // of the query
if (sieved || RECORD) {
#pragma unroll
  for (int j = 0; j < D / 32; ++j) {
    const float x = q[head * D + j * 32 + lane];
    length = fmaf(x, x, length);
  }
#pragma unroll
  for (int i = 16; i > 0; i /= 2) length += __shfl_xor_sync(~0u, length, i);
  length = sqrtf(length);
}
const float* tops = tile_tops + row * (chunks * 16);
int candidates = tiles;
if (chunks <= 64) {
  for (int i = threadIdx.x; i < tiles; i += 256) items[i] = make_item(tops[i], i);
} else {
  for (int i = threadIdx.x; i < chunks; i += 256) items[i] = make_item(chunk_tops[row * chunks + i], i);
  const int some = min(wanted, chunks);
  greatest(items, chunks, some, found);
  candidates = some * 16;
  for (int i = threadIdx.x; i < candidates; i += 256) {
    const int at = place_of(found[i / 16]) * 16 + i % 16;
    items[i] = at < tiles ? make_item(tops[at], at) : 0;
  }
}
const int some = min(wanted, tiles);
greatest(items, candidates, some, found);
for (int i = threadIdx.x; i < some * 16; i += 256) {
  const int n = place_of(found[i / 16]) * 16 + i % 16;
  items[i] = 0;
  if (n < count) items[i] = make_item(by_dot ? own_products[n] : own_products[n] * own_norms[n], n);
}
greatest(items, some * 16, wanted, found);
if (threadIdx.x < wanted) { // in order, so that sums are
  int place = 0;
  for (int i = 0; i < wanted; ++i) place += found[i] > found[threadIdx.x];
  items[place] = found[threadIdx.x];
}
__syncthreads();
const int memory = threadIdx.x < wanted ? place_of(items[threadIdx.x]) : 0;
const float cosine = own_products[memory] * own_norms[memory]; // times the query's length
float score = own_products[memory] * __int_as_float(how[4]);
const float softcap = __int_as_float(how[5]);
if (softcap > 0) score = tanhf(score / softcap) * softcap;
const bool taken = threadIdx.x < wanted && (!sieved || cosine > __int_as_float(how[3]) * length);
if (!taken) score = -INFINITY;
if (threadIdx.x < wanted) scores[threadIdx.x] = score;
__syncthreads();
const float mass = masses[head];
float top = mass;
for (int i = lane; i < wanted; i += 32) top = fmaxf(top, scores[i]);
#pragma unroll
for (int i = 16; i > 0; i /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, i));
__syncthreads();
const float own = expf(mass - top), weight = taken ? expf(score - top) : 0.f;
if (threadIdx.x < wanted) scores[threadIdx.x] = weight;
__syncthreads();
float total = 0;
for (int i = lane; i < wanted; i += 32) total += scores[i];
#pragma unroll
for (int i = 16; i > 0; i /= 2) total += __shfl_xor_sync(~0u, total, i);
total += own;
const int slice = threadIdx.x / PAIRS, pair = threadIdx.x % PAIRS;
if (slice < SLICES) {
  struct alignas(4) Pair { T v[2]; };
  float sum0 = 0, sum1 = 0;
#pragma unroll 4
  for (int i = slice; i < wanted; i += SLICES) {
    const Pair x = ((const Pair*)values)[((long)kv * count + place_of(items[i])) * PAIRS + pair];
    sum0 = fmaf(scores[i], float(x.v[0]), sum0);
    sum1 = fmaf(scores[i], float(x.v[1]), sum1);
  }
  sums[slice * DV + 2 * pair] = sum0;
  sums[slice * DV + 2 * pair + 1] = sum1;
}
__syncthreads();
if (threadIdx.x < DV) {
  float sum = own * float(local[head * DV + threadIdx.x]);
  for (int i = 0; i < SLICES; ++i) sum += sums[i * DV + threadIdx.x];
  out[head * DV + threadIdx.x] = L(sum / total);
}
)cu";

// Where a record is kept, the last of a token's blocks adds what its heads give, in their order.
constexpr const char* record_code = R"cu(
if (threadIdx.x < wanted) {
  places[head * wanted + threadIdx.x] = memory;
  weights[head * wanted + threadIdx.x] = taken ? weight / total : -1.f;
  cosines[head * wanted + threadIdx.x] = cosine / fmaxf(length, 1e-12f);
}
__threadfence();
__syncthreads();
__shared__ bool last;
if (threadIdx.x == 0) last = atomicAdd((int*)finished + t, 1) == H - 1;
__syncthreads();
if (!last) return;
__threadfence();
volatile float* given = (float*)record + (long)t * 3 * count;
for (int i = 0; i < H; ++i) {
  const long at = ((long)t * H + i) * wanted + threadIdx.x; // others wrote it: volatile
  const float more = threadIdx.x < wanted ? ((volatile float*)weights)[at] : -1.f;
  if (more >= 0) {
    const int n = ((volatile int*)places)[at];
    const float x = ((volatile float*)cosines)[at];
    given[n] = given[n] + more;
    given[count + n] = fmaxf(given[count + n], x);
    given[2 * (long)count + n] = given[2 * (long)count + n] + 1.f;
  }
  __syncthreads();
}
)cu";

/** What the kernels read at run time: a top_k or threshold of its own compiles nothing. Kept, as steps' are alike. */
const mx::array& settings(const RecallShape& shape) {
  static auto& known = *new std::map<std::array<int, 6>, mx::array>; // what is on the GPU lives as long as MLX
  const std::array<int, 6> key{
      shape.top_k,
      shape.by_dot,
      shape.threshold.has_value(),
      std::bit_cast<int>(shape.threshold.value_or(0.0f)),
      std::bit_cast<int>(shape.scale),
      std::bit_cast<int>(shape.softcap)};
  if (known.size() >= 256 && !known.contains(key)) {
    known.clear();
  }
  auto found = known.find(key);
  if (found == known.end()) {
    found = known.emplace(key, upload(key.data(), {6}, mx::int32)).first;
  }
  return found->second;
}

} // namespace

bool recalls(const mx::array& q, const mx::array& keys, const mx::array& values, const RecallShape& shape) {
  return attends(keys.dtype(), keys.shape(2), values.shape(2)) && keys.dtype() == values.dtype() && shape.block == 1 &&
      shape.top_k > 0 && std::min(shape.top_k, keys.shape(1)) <= most_items / tile &&
      keys.shape(1) <= most_items * chunk && q.shape(0) > 0;
}

namespace {

/** recall, of what memory suffices for. What it makes of `record` comes with it. */
mx::array recall_some(
    const mx::array& q,
    const mx::array& keys,
    const mx::array& inverse_norms,
    const mx::array& values,
    const mx::array& local,
    const mx::array& masses,
    const RecallShape& shape,
    const std::optional<mx::array>& record) {
  thread_local const Kernel multiply(
      "recall_products",
      {"q", "keys", "norms", "how"},
      {"products", "tile_tops", "chunk_tops"},
      products_code,
      device_code,
      0,
      128); // so that one block computes while another's keys are on their way
  static const std::vector<std::string> inputs = {
      "q", "products", "tile_tops", "chunk_tops", "norms", "values", "local", "masses", "how", "record", "finished"};
  thread_local const Kernel attend("recall_attend", inputs, {"out"}, attend_code, greatest_code);
  thread_local const Kernel attend_and_record(
      "recall_record",
      inputs,
      {"out", "places", "weights", "cosines"},
      std::string(attend_code) + record_code,
      greatest_code);
  const int tokens = q.shape(0), heads = q.shape(1), dims = q.shape(2), groups = keys.shape(0),
            v_dims = values.shape(2);
  const int rows = tokens * (heads / groups), chunks = (keys.shape(1) + chunk - 1) / chunk;
  const int most = dims <= 128 ? 4 : 2; // eights of queries that a block's shared memory holds
  const int eights = rows <= 8 ? 1 : rows <= 16 ? 2 : most;
  const auto& how = settings(shape);
  auto found = multiply(
      {q, keys, inverse_norms, how},
      {{groups, rows, chunks * chunk}, {groups, rows, chunks * (chunk / tile)}, {groups, rows, chunks}},
      {mx::float32, mx::float32, mx::float32},
      {(rows + 8 * eights - 1) / (8 * eights) * 256, chunks, groups},
      {256, 1, 1},
      {{"T", keys.dtype()}, {"H", heads}, {"G", groups}, {"D", dims}, {"NB", eights}});
  const std::vector<std::pair<std::string, mx::fast::TemplateArg>> kinds = {
      {"T", values.dtype()},
      {"L", local.dtype()},
      {"H", heads},
      {"G", groups},
      {"D", dims},
      {"DV", v_dims},
      {"RECORD", record.has_value()}};
  const std::tuple<int, int, int> grid{heads * 256, tokens, 1}, threads{256, 1, 1};
  std::vector<mx::array> arrays{q, found[0], found[1], found[2], inverse_norms, values, local, masses, how};
  if (!record) {
    arrays.insert(arrays.end(), 2, how); // unread
    return attend(arrays, {local.shape()}, {local.dtype()}, grid, threads, kinds)[0];
  }
  arrays.insert(arrays.end(), {*record, mx::zeros({tokens}, mx::int32)});
  const mx::Shape given{tokens, heads, std::min(shape.top_k, keys.shape(1))};
  return attend_and_record(
      arrays,
      {local.shape(), given, given, given},
      {local.dtype(), mx::int32, mx::float32, mx::float32},
      grid,
      threads,
      kinds)[0];
}

} // namespace

mx::array recall(
    const mx::array& q,
    const mx::array& keys,
    const mx::array& inverse_norms,
    const mx::array& values,
    const mx::array& local,
    const mx::array& masses,
    const RecallShape& shape,
    mx::array* record) {
  const int tokens = q.shape(0);
  const size_t memories = (keys.shape(1) + chunk - 1) / chunk * chunk;
  const int most = std::max<int>(1, most_products / (q.shape(1) * memories));
  std::vector<mx::array> parts;
  for (int t = 0; t < tokens; t += most) {
    const auto part = [&](const mx::array& x) { return rows(x, t, std::min(tokens, t + most)); };
    const auto own_record = record ? std::optional(part(*record)) : std::nullopt;
    parts.push_back(recall_some(part(q), keys, inverse_norms, values, part(local), part(masses), shape, own_record));
  }
  if (record) { // written in place, so what reads it must come later
    *record = mx::depends({*record}, parts)[0];
  }
  return parts.size() == 1 ? parts[0] : mx::concatenate(parts, 0);
}

} // namespace parallm::cuda
