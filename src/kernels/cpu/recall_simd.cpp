// Extended Mind attention (arXiv 2406.02332) in two stages: all products of
// queries and keys, stretch by stretch of the keys, each key loaded once for
// the heads and tokens that share it; then for each query the greatest of them
// and its softmax. What a query gets depends on its own numbers alone.
//
// Of many keys, the first stage reads codes: whole numbers tell every cosine up
// to a bound of the rounding, and of each 16 keys the greatest lower end is kept.
// The top_k-th of those is a floor under the top_k greatest cosines. Keys whose
// upper end reaches it, a few more than top_k, are then multiplied as they are,
// so that what is chosen, and every number, is what it would be without codes.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recall_simd.cpp"
#define HWY_WANT_AVX3_DL // has VNNI
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/products-inl.h"
#include "kernels/cpu/recall.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr size_t stretch = 512; // keys of an item
constexpr size_t tile_keys = 64; // that are turned to floats together
constexpr size_t tile_rows = 32; // query heads of one kv head that share loads, about
constexpr size_t most_products = 8 << 20; // alive at once
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

constexpr size_t stretch_tiles = 16; // of an item that reads codes

enum Scratch { scratch_rows, scratch_weights, scratch_products };

/** A key and how similar it is; of equal ones the first is the greater. */
struct Candidate {
  float rank;
  uint32_t key;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : key < other.key;
  }
};

/** Tokens [first, first + count) of one kv head by keys from `begin` on. */
struct Item {
  size_t first, count, kv_head, begin;
};

/** products [.., N]: rows are heads of tokens, counted from the token `base`. */
template <class P>
void multiply_stretch(const RecallJob& job, const Item& item, size_t base, float* products) {
  const size_t heads = job.heads / job.kv_heads;
  const size_t rows = item.count * heads;
  const size_t dim = round_up(job.dim, lanes);
  const bool direct = job.dim % lanes == 0 && rows <= 8;
  float* q = thread_scratch(scratch_rows, (rows + tile_keys) * dim + rows * tile_keys);
  float* floats = q + rows * dim;
  float* sums = floats + tile_keys * dim;
  for (size_t row = 0; row < rows; row++) {
    const size_t t = item.first + row / heads, h = item.kv_head * heads + row % heads;
    widen(job.q + (t * job.heads + h) * job.dim, job.dim, q + row * dim, dim);
  }
  const auto* keys = static_cast<const P*>(job.keys) + item.kv_head * job.memories * job.dim;
  const size_t end = std::min(job.memories, item.begin + stretch);
  for (size_t n = item.begin; n < end; n += tile_keys) {
    const size_t count = std::min(tile_keys, end - n);
    std::fill(sums, sums + rows * tile_keys, 0.0f);
    if (direct) {
      multiply({q, dim}, rows, Dense<P>{keys + n * job.dim, job.dim}, count, dim, dim, sums, tile_keys);
    } else {
      for (size_t j = 0; j < count; j++) {
        widen(keys + (n + j) * job.dim, job.dim, floats + j * dim, dim);
      }
      multiply({q, dim}, rows, Dense<float>{floats, dim}, count, dim, dim, sums, tile_keys);
    }
    for (size_t row = 0; row < rows; row++) {
      const size_t t = item.first + row / heads - base, h = item.kv_head * heads + row % heads;
      std::copy_n(sums + row * tile_keys, count, products + (t * job.heads + h) * job.memories + n);
    }
  }
}

/** The `top_k` greatest of `count` products (times `norms`, where not null); the first one is the least. */
std::vector<Candidate> greatest(const float* products, const float* norms, size_t count, size_t top_k) {
  std::vector<Candidate> heap;
  heap.reserve(top_k);
  float least = minus_infinity;
  const auto offer = [&](float rank, size_t n) {
    if (heap.size() < top_k) {
      heap.push_back({rank, static_cast<uint32_t>(n)});
      if (heap.size() == top_k) {
        std::make_heap(heap.begin(), heap.end(), std::greater<>());
        least = heap.front().rank;
      }
    } else if (rank > least) {
      std::pop_heap(heap.begin(), heap.end(), std::greater<>());
      heap.back() = {rank, static_cast<uint32_t>(n)};
      std::push_heap(heap.begin(), heap.end(), std::greater<>());
      least = heap.front().rank;
    }
  };
  const F32 d;
  size_t n = 0;
  for (; n + lanes <= count; n += lanes) {
    const V rank = norms ? hn::Mul(load(products + n), load(norms + n)) : load(products + n);
    if (heap.size() == top_k && hn::AllFalse(d, hn::Gt(rank, hn::Set(d, least)))) {
      continue;
    }
    alignas(64) float ranks[lanes];
    store(rank, ranks);
    for (size_t i = 0; i < lanes; i++) {
      offer(ranks[i], n + i);
    }
  }
  for (; n < count; n++) {
    offer(norms ? products[n] * norms[n] : products[n], n);
  }
  return heap;
}

/** A key that a query attends to. */
struct Chosen {
  uint32_t key;
  float product;
};

/** Keys in rising order. */
std::vector<Chosen> choose(const RecallJob& job, const float* products, const float* norms) {
  std::vector<Chosen> chosen;
  chosen.reserve(job.top_k);
  if (job.top_k == job.memories) {
    for (size_t n = 0; n < job.memories; n++) {
      chosen.push_back({static_cast<uint32_t>(n), products[n]});
    }
    return chosen;
  }
  for (const Candidate& candidate : greatest(products, norms, job.memories, job.top_k)) {
    chosen.push_back({candidate.key, products[candidate.key]});
  }
  std::sort(chosen.begin(), chosen.end(), [](const Chosen& a, const Chosen& b) { return a.key < b.key; });
  return chosen;
}

/** One head of one token, for products with codes. */
struct CodedQuery {
  float scale; // q is about scale * codes
  float bound; // of what a product is off, in units of a key's scale
  float slack; // twice what float32 rounds of anything here
  int32_t start; // what the keys' 32 add, with the other sign
  int32_t* pairs; // for each 4 dimensions codes 0 and 2, then 1 and 3
};

CodedQuery code_query(const RecallJob& job, const float* q, size_t g, int32_t* pairs) {
  constexpr float most = 8191; // times 63, of 4096 dimensions, is below 2^31
  CodedQuery coded{0, 0, 0, 0, pairs};
  std::fill(pairs, pairs + 8 * code_parts(job.dim), 0);
  const float* bounds = job.centres + g * (job.dim + 2) + job.dim;
  double squares = 0, off = 0, coded_squares = 0;
  float top = 0;
  for (size_t d = 0; d < job.dim; d++) {
    top = std::max(top, std::abs(q[d]));
    squares += double{q[d]} * q[d];
  }
  coded.scale = std::max(top, 1e-20f) / most;
  const float inverse = 1 / coded.scale;
  for (size_t d = 0; d < job.dim; d++) {
    const float exact = q[d] * inverse;
    const float rounded = std::isfinite(exact) ? std::clamp(std::nearbyint(exact), -most, most) : 0;
    const auto code = static_cast<int32_t>(rounded);
    off += double{exact - rounded} * (exact - rounded);
    coded_squares += double{rounded} * rounded;
    coded.start -= 32 * code;
    int32_t& pair = pairs[2 * (d / 4) + d % 2];
    pair |= d % 4 < 2 ? code & 0xFFFF : static_cast<int32_t>(static_cast<uint32_t>(code) << 16);
  }
  coded.bound = coded.scale *
      static_cast<float>(std::sqrt(coded_squares) * bounds[0] + std::sqrt(off) * (double{bounds[0]} + bounds[1]));
  coded.slack = static_cast<float>(job.dim + 64) * 0x1p-22f * static_cast<float>(std::sqrt(squares));
  return coded;
}

/** take(query, first key, sums) of `MR` queries and `NV` vectors of a tile's keys from `first` on. */
template <int MR, size_t NV, class F>
HWY_INLINE void
multiply_codes(const int32_t* tile, size_t parts, size_t first, const CodedQuery* const (&queries)[MR], const F& take) {
  constexpr int chains = MR == 1 ? 2 : 1; // sums that don't wait for each other
  const I32 d;
  VI sums[chains][MR][NV];
  for (int c = 0; c < chains; c++) {
    for (int m = 0; m < MR; m++) {
      for (size_t i = 0; i < NV; i++) {
        sums[c][m][i] = c == 0 ? hn::Set(d, queries[m]->start) : hn::Zero(d);
      }
    }
  }
  const auto add = [&](const VI(&even)[NV], const VI(&odd)[NV], size_t at) {
    for (int m = 0; m < MR; m++) {
      for (size_t i = 0; i < NV; i++) {
        sums[0][m][i] = add_products(sums[0][m][i], even[i], queries[m]->pairs + at);
      }
      for (size_t i = 0; i < NV; i++) {
        sums[chains - 1][m][i] = add_products(sums[chains - 1][m][i], odd[i], queries[m]->pairs + at + 1);
      }
    }
  };
  for (size_t p = 0; p < parts; p++) {
    VI even[NV], odd[NV], high[NV];
    const VI low_bits = hn::Set(d, 0x003F003F);
    const auto read = [&](auto shift, int32_t mask) {
      constexpr int w = 3 - decltype(shift)::value / 2; // the word whose high bits are shifted so far
      for (size_t i = 0; i < NV; i++) {
        const VI word = hn::LoadU(d, tile + (p * 3 + w) * code_tile + first + i * lanes);
        even[i] = hn::And(word, low_bits);
        odd[i] = hn::And(hn::ShiftRight<8>(word), low_bits);
        const VI part = hn::And(hn::ShiftRight<decltype(shift)::value>(word), hn::Set(d, mask));
        high[i] = w == 0 ? part : hn::Or(high[i], part);
      }
      add(even, odd, p * 8 + 2 * w);
    };
    read(std::integral_constant<int, 6>(), 0x03030303);
    read(std::integral_constant<int, 4>(), 0x0C0C0C0C);
    read(std::integral_constant<int, 2>(), 0x30303030);
    for (size_t i = 0; i < NV; i++) {
      even[i] = hn::And(high[i], low_bits);
      odd[i] = hn::And(hn::ShiftRight<8>(high[i]), low_bits);
    }
    add(even, odd, p * 8 + 6);
  }
  for (int m = 0; m < MR; m++) {
    for (size_t i = 0; i < NV; i++) {
      const VI sum = chains == 1 ? sums[0][m][i] : hn::Add(sums[0][m][i], sums[chains - 1][m][i]);
      take(m, first + i * lanes, sum);
    }
  }
}

/** Where a tile's codes and scales lie. */
struct Tile {
  const int32_t* codes;
  const float* scales;

  Tile(const RecallJob& job, size_t g, size_t tile) {
    const size_t place = g * code_tiles(job.memories) + tile;
    codes = reinterpret_cast<const int32_t*>(job.codes) + place * 3 * code_parts(job.dim) * code_tile;
    scales = job.scales + place * code_scales;
  }
};

/** floors[query]: of each of the keys' groups the greatest lower end of a cosine. Tiles [begin, end) of a kv head. */
template <int MR>
HWY_NOINLINE void scan_tiles(
    const RecallJob& job,
    size_t g,
    size_t begin,
    size_t end,
    const CodedQuery* const (&queries)[MR],
    float* const (&floors)[MR]) {
  constexpr size_t most = many_registers ? 4 : 2, at_once = std::min(most, code_tile / lanes);
  constexpr size_t groups = code_tile / code_group;
  const I32 d;
  const VI least = hn::Set(d, std::numeric_limits<int32_t>::min());
  for (size_t t = begin; t < end; t++) {
    const Tile tile(job, g, t);
    const size_t count = std::min(code_tile, job.memories - t * code_tile);
    VI best[MR][groups];
    for (auto& own : best) {
      for (VI& group : own) {
        group = least;
      }
    }
    for (size_t first = 0; first < code_tile; first += at_once * lanes) {
      multiply_codes<MR, at_once>(tile.codes, code_parts(job.dim), first, queries, [&](int m, size_t at, VI sums) {
        if (count < code_tile) {
          const size_t there = count > at ? std::min(count - at, lanes) : 0;
          sums = hn::IfThenElse(hn::FirstN(d, there), sums, least);
        }
        best[m][at / code_group] = hn::Max(best[m][at / code_group], sums);
      });
    }
    for (int m = 0; m < MR; m++) {
      for (size_t i = 0; i < groups; i++) {
        const auto greatest = static_cast<float>(hn::GetLane(hn::MaxOfLanes(d, best[m][i])));
        const float low = (greatest * queries[m]->scale - queries[m]->bound) * tile.scales[i];
        floors[m][t * groups + i] = i * code_group < count ? low : minus_infinity;
      }
    }
  }
}

/** The keys that may be among the top_k most similar, rising: at least top_k. */
std::vector<uint32_t> candidates(const RecallJob& job, size_t g, const CodedQuery& query, const float* floors) {
  constexpr size_t groups = code_tile / code_group, at_once = std::min<size_t>(2, code_group / lanes);
  const size_t tiles = code_tiles(job.memories);
  const float floor = greatest(floors, nullptr, tiles * groups, job.top_k).front().rank - query.slack;
  std::vector<uint32_t> found;
  found.reserve(4 * job.top_k);
  const CodedQuery* const queries[1] = {&query};
  for (size_t t = 0; t < tiles; t++) {
    const Tile tile(job, g, t);
    for (size_t i = 0; i < groups; i++) {
      if (floors[t * groups + i] + 2 * query.bound * tile.scales[i] < floor) {
        continue;
      }
      for (size_t first = i * code_group; first < (i + 1) * code_group; first += at_once * lanes) {
        multiply_codes<1, at_once>(tile.codes, code_parts(job.dim), first, queries, [&](int, size_t at, VI sums) {
          alignas(64) int32_t products[lanes];
          hn::StoreU(sums, I32(), products);
          for (size_t j = 0; j < lanes; j++) {
            const size_t n = t * code_tile + at + j;
            const float high = (static_cast<float>(products[j]) * query.scale + query.bound) * tile.scales[i];
            if (!(high < floor) && n < job.memories) {
              found.push_back(static_cast<uint32_t>(n));
            }
          }
        });
      }
    }
  }
  if (found.size() < job.top_k) { // numbers that are none
    found.resize(job.memories);
    std::iota(found.begin(), found.end(), 0);
  }
  return found;
}

/** What `choose` gives, by way of candidates. */
template <class P>
std::vector<Chosen>
choose_coded(const RecallJob& job, size_t row, size_t g, const CodedQuery& query, const float* floors) {
  const auto keys = candidates(job, g, query, floors);
  const size_t dim = round_up(job.dim, lanes), many = round_up(keys.size(), tile_keys);
  float* q = thread_scratch(scratch_rows, dim + tile_keys * dim + 2 * many);
  float *floats = q + dim, *products = floats + tile_keys * dim, *norms = products + many;
  widen(job.q + row * job.dim, job.dim, q, dim);
  std::fill(products, products + many, 0.0f);
  for (size_t first = 0; first < keys.size(); first += tile_keys) {
    const size_t count = std::min(tile_keys, keys.size() - first);
    for (size_t j = 0; j < count; j++) {
      const size_t n = g * job.memories + keys[first + j];
      widen(static_cast<const P*>(job.keys) + n * job.dim, job.dim, floats + j * dim, dim);
      norms[first + j] = job.inverse_norms[n];
    }
    multiply({q, dim}, 1, Dense<float>{floats, dim}, count, dim, dim, products + first, tile_keys);
  }
  std::vector<Chosen> chosen;
  chosen.reserve(job.top_k);
  for (const Candidate& candidate : greatest(products, norms, keys.size(), job.top_k)) {
    chosen.push_back({keys[candidate.key], products[candidate.key]});
  }
  std::sort(chosen.begin(), chosen.end(), [](const Chosen& a, const Chosen& b) { return a.key < b.key; });
  return chosen;
}

/** What a head of a token gives to one memory. */
struct Given {
  uint32_t memory;
  float weight; // negative: left out
  float cosine;
};

/** Softmax and sum of a head of a token. `given`, where not null: [top_k], all written. */
template <class T, class P>
void finish(const RecallJob& job, size_t row, size_t g, const std::vector<Chosen>& chosen, Given* given) {
  const float* norms = job.inverse_norms + g * job.memories;
  const size_t v_dim = round_up(job.v_dim, lanes);
  float* weights = thread_scratch(scratch_weights, round_up(chosen.size(), 16) + 2 * v_dim);
  float* out = weights + round_up(chosen.size(), 16);
  float* value = out + v_dim;
  const float* q = job.q + row * job.dim;
  float length = 0, least_product = minus_infinity; // of cosine 1
  if (job.threshold || given) {
    double squares = 0;
    for (size_t i = 0; i < job.dim; i++) {
      squares += double{q[i]} * q[i];
    }
    length = static_cast<float>(std::sqrt(squares));
  }
  if (job.threshold) {
    least_product = *job.threshold * length;
  }
  float top = job.masses[row];
  for (size_t i = 0; i < chosen.size(); i++) {
    const auto [key, product] = chosen[i];
    float score = product * job.scale;
    if (job.softcap > 0) {
      score = job.softcap * std::tanh(score / job.softcap);
    }
    if (job.threshold && !(product * norms[key] > least_product)) {
      score = minus_infinity;
    }
    weights[i] = score;
    top = std::max(top, score);
  }
  const float own = std::exp(job.masses[row] - top);
  float total = own;
  widen(static_cast<const T*>(job.local) + row * job.v_dim, job.v_dim, out, v_dim);
  for (size_t i = 0; i < v_dim; i += lanes) {
    store(hn::Mul(load(out + i), hn::Set(F32(), own)), out + i);
  }
  const auto* values = static_cast<const P*>(job.values) + g * job.memories * job.v_dim;
  for (size_t c = 0; c < chosen.size(); c++) {
    const auto [key, product] = chosen[c];
    const float weight = std::exp(weights[c] - top);
    total += weight;
    if (given) {
      const float cosine = product * norms[key] / std::max(length, 1e-12f);
      given[c] = {key, weights[c] == minus_infinity ? -1 : weight, cosine};
    }
    widen(values + key * job.v_dim, job.v_dim, value, v_dim);
    for (size_t i = 0; i < v_dim; i += lanes) {
      store(hn::MulAdd(hn::Set(F32(), weight), load(value + i), load(out + i)), out + i);
    }
  }
  for (size_t i = 0; i < v_dim; i += lanes) {
    store(hn::Div(load(out + i), hn::Set(F32(), total)), out + i);
  }
  narrow(out, job.v_dim, static_cast<T*>(job.out) + row * job.v_dim);
  for (size_t c = 0; given && c < chosen.size(); c++) {
    given[c].weight /= total;
  }
}

/** Adds what a token's heads give, head after head. */
void add_record(const RecallJob& job, const Given* given, float* record) {
  float *masses = record, *cosines = masses + job.memories, *counts = cosines + job.memories;
  for (size_t i = 0; i < job.heads * job.top_k; i++) {
    const auto& [n, weight, cosine] = given[i];
    if (weight >= 0) {
      masses[n] += weight;
      cosines[n] = std::max(cosines[n], cosine);
      counts[n] += 1;
    }
  }
}

/** Tokens [base, base + tokens): for each of their heads `chosen`(row, place among them, kv head) is finished. */
template <class T, class P, class F>
void finish_all(const RecallJob& job, size_t base, size_t tokens, const F& chosen) {
  const size_t shared = job.heads / job.kv_heads, record_size = job.heads * job.top_k;
  std::vector<Given> given(job.record ? tokens * record_size : 0);
  parallel_for(tokens * job.heads, [&](size_t i) {
    const size_t row = base * job.heads + i, g = i % job.heads / shared;
    finish<T, P>(job, row, g, chosen(row, i, g), job.record ? given.data() + i * job.top_k : nullptr);
  });
  if (job.record) {
    parallel_for(tokens, [&](size_t t) {
      add_record(job, given.data() + t * record_size, job.record + (base + t) * 3 * job.memories);
    });
  }
}

/** Tokens of a round, and of an item. */
size_t round_tokens(const RecallJob& job, size_t numbers) {
  return std::min(job.tokens, std::max<size_t>(1, most_products / (job.heads * numbers)));
}
size_t item_tokens(const RecallJob& job) {
  return std::max<size_t>(1, tile_rows / (job.heads / job.kv_heads));
}

std::vector<Item> items_of(const RecallJob& job, size_t base, size_t tokens, size_t ends, size_t step) {
  std::vector<Item> items;
  const size_t shared = item_tokens(job);
  for (size_t g = 0; g < job.kv_heads; g++) {
    for (size_t n = 0; n < ends; n += step) {
      for (size_t i = 0; i < tokens; i += shared) {
        items.push_back({base + i, std::min(shared, tokens - i), g, n});
      }
    }
  }
  return items;
}

template <class T, class P>
void run(const RecallJob& job) {
  const size_t most = round_tokens(job, job.memories);
  // Kept by this thread: fresh memory of this size would be mapped anew for each layer.
  float* products = thread_scratch(scratch_products, most * job.heads * job.memories);
  for (size_t base = 0; base < job.tokens; base += most) {
    const size_t tokens = std::min(most, job.tokens - base);
    const auto items = items_of(job, base, tokens, job.memories, stretch);
    parallel_for(items.size(), [&](size_t i) { multiply_stretch<P>(job, items[i], base, products); });
    finish_all<T, P>(job, base, tokens, [&](size_t, size_t i, size_t g) {
      return choose(job, products + i * job.memories, job.by_dot ? nullptr : job.inverse_norms + g * job.memories);
    });
  }
}

template <class T, class P>
void run_coded(const RecallJob& job) {
  const size_t tiles = code_tiles(job.memories), shared = job.heads / job.kv_heads;
  const size_t groups = tiles * (code_tile / code_group), pairs = 8 * code_parts(job.dim);
  const size_t most = round_tokens(job, groups);
  float* floors = thread_scratch(scratch_products, most * job.heads * groups);
  std::vector<CodedQuery> queries(most * job.heads);
  std::vector<int32_t> all_pairs(queries.size() * pairs);
  for (size_t base = 0; base < job.tokens; base += most) {
    const size_t tokens = std::min(most, job.tokens - base), first_row = base * job.heads;
    const auto code = [&](size_t t) {
      for (size_t i = t * job.heads; i < (t + 1) * job.heads; i++) {
        const float* q = job.q + (first_row + i) * job.dim;
        queries[i] = code_query(job, q, i % job.heads / shared, all_pairs.data() + i * pairs);
      }
    };
    if (tokens < 4) {
      for (size_t t = 0; t < tokens; t++) { // sooner than waking a thread
        code(t);
      }
    } else {
      parallel_for(tokens, code);
    }
    const auto items = items_of(job, base, tokens, tiles, stretch_tiles);
    parallel_for(items.size(), [&](size_t i) {
      const Item& item = items[i];
      const size_t end = std::min(tiles, item.begin + stretch_tiles), rows = item.count * shared;
      const auto scan = [&]<int MR>(std::integral_constant<int, MR>, size_t first) {
        const CodedQuery* part[MR];
        float* to[MR];
        for (int m = 0; m < MR; m++) {
          const size_t row = first + m, t = item.first - base + row / shared;
          const size_t place = t * job.heads + item.kv_head * shared + row % shared;
          part[m] = &queries[place];
          to[m] = floors + place * groups;
        }
        scan_tiles<MR>(job, item.kv_head, item.begin, end, part, to);
      };
      size_t row = 0;
      for (; row + 4 <= rows; row += 4) {
        scan(std::integral_constant<int, 4>(), row);
      }
      if (rows - row == 3) {
        scan(std::integral_constant<int, 3>(), row);
      } else if (rows - row == 2) {
        scan(std::integral_constant<int, 2>(), row);
      } else if (rows - row == 1) {
        scan(std::integral_constant<int, 1>(), row);
      }
    });
    finish_all<T, P>(job, base, tokens, [&](size_t row, size_t i, size_t g) {
      return choose_coded<P>(job, row, g, queries[i], floors + i * groups);
    });
  }
}

void Run(const RecallJob& job) {
  with_type(job.type, job.local, [&]<class T>(const T*) {
    with_type(job.memory_type, job.keys, [&]<class P>(const P*) {
      // Floors of fewer groups would rule little out.
      const bool coded =
          job.codes && !job.by_dot && job.top_k > 0 && 2 * job.top_k <= (job.memories + code_group - 1) / code_group;
      coded ? run_coded<T, P>(job) : run<T, P>(job);
    });
  });
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(Run);

void run_recall(const RecallJob& job) {
  HWY_DYNAMIC_DISPATCH(Run)(job);
}
} // namespace parallm::cpu
#endif
