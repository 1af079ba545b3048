// How recall_simd.cpp finds the most similar of many keys by their codes. Included once for each instruction set, after
// hwy/foreach_target.h.
//
// Products of whole numbers tell every cosine up to a bound of the rounding, and of each group of 16 keys the greatest
// lower end is kept. The best key of each of the top_k best groups, multiplied as it is, gives a floor under the top_k
// greatest cosines; the keys whose upper end reaches it, a few more than top_k, are then multiplied too, so what is
// chosen, and every number, is what it would be without codes.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/products-inl.h"
#include "kernels/cpu/recall.h"

#include <hwy/cache_control.h>

#include <algorithm>
#include <array>
#include <limits>
#include <numeric>
#include <vector>

#if defined(PARALLM_RECALL_CODES_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef PARALLM_RECALL_CODES_INL_H
#undef PARALLM_RECALL_CODES_INL_H
#else
#define PARALLM_RECALL_CODES_INL_H
#endif

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr size_t tile_keys = 64; // that are turned to floats together
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

enum Scratch { scratch_rows, scratch_weights, scratch_products };

/** Keys or values of one kv head that are floats. */
template <class P>
struct FloatRowsOf {
  const P* rows;
  size_t dim;

  FloatRowsOf(const RowsOf& all, size_t g, size_t memories, size_t dim)
      : rows(static_cast<const P*>(all.data) + g * memories * dim), dim(dim) {}

  void read(size_t n, float* to) const {
    widen(rows + n * dim, dim, to, round_up(dim, lanes));
  }
  void fetch(size_t n) const {
    for (size_t i = 0; i < dim; i += 64 / sizeof(P)) {
      hwy::Prefetch(rows + n * dim + i);
    }
  }
  /** For `multiply`: those from n on. */
  Dense<P> from(size_t n) const {
    return {rows + n * dim, dim};
  }
  size_t group() const {
    return dim;
  }
};

/** That are codes. */
struct CodeRowsOf {
  static constexpr int most_rows = 4;
  using D8 = hn::Rebind<uint8_t, F32>;

  struct Column {
    const uint8_t* codes;
    const float *scales, *biases;
    V scale, bias;

    HWY_INLINE Column() {} // an implicit one is not compiled for the target (GCC on ARM)
    HWY_INLINE Column(const uint8_t* codes, const float* scales, const float* biases)
        : codes(codes), scales(scales), biases(biases) {}

    HWY_INLINE void begin_group(size_t g) {
      scale = hn::Set(F32(), scales[g]);
      bias = hn::Set(F32(), biases[g]);
    }
    HWY_INLINE V at(size_t k) const {
      const V code = hn::ConvertTo(F32(), hn::PromoteTo(I32(), hn::LoadU(D8(), codes + k)));
      return hn::MulAdd(code, scale, bias);
    }
  };

  const uint8_t* codes;
  const float *scales, *biases;
  size_t dim, groups; // of a row

  CodeRowsOf(const RowsOf& all, size_t g, size_t memories, size_t dim)
      : codes(static_cast<const uint8_t*>(all.data) + g * memories * dim),
        scales(all.scales + g * memories * (dim / kv_group(dim))),
        biases(all.biases + g * memories * (dim / kv_group(dim))),
        dim(dim),
        groups(dim / kv_group(dim)) {}

  HWY_INLINE Column column(size_t n) const {
    return {codes + n * dim, scales + n * groups, biases + n * groups};
  }
  void read(size_t n, float* to) const {
    Column own = column(n);
    for (size_t k = 0; k < dim; k += lanes) {
      if (k % group() == 0) {
        own.begin_group(k / group());
      }
      store(own.at(k), to + k);
    }
  }
  void fetch(size_t n) const {
    for (size_t i = 0; i < dim; i += 64) {
      hwy::Prefetch(codes + n * dim + i);
    }
    hwy::Prefetch(scales + n * groups);
    hwy::Prefetch(biases + n * groups);
  }
  CodeRowsOf from(size_t n) const {
    CodeRowsOf rest = *this;
    rest.codes += n * dim;
    rest.scales += n * groups;
    rest.biases += n * groups;
    return rest;
  }
  size_t group() const {
    return dim / groups;
  }
};

/** A key and how similar it is; of equal ones the first is the greater. */
struct Candidate {
  float rank;
  uint32_t key;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : key < other.key;
  }
};

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
    } else if (rank > least) { // in place of the least
      const Candidate added{rank, static_cast<uint32_t>(n)};
      size_t i = 0;
      for (size_t child = 1; child < top_k; child = 2 * i + 1) {
        child += child + 1 < top_k && heap[child] > heap[child + 1];
        if (!(added > heap[child])) {
          break;
        }
        heap[i] = heap[child];
        i = child;
      }
      heap[i] = added;
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

/** One head of one token, for products with codes. */
struct CodedQuery {
  float scale; // q is about scale * codes
  float bound; // of what a product is off, in units of a key's scale
  float slack; // twice what float32 rounds of anything here
  float centre; // q . the keys' centre: what products with codes leave out
  int32_t start; // what the keys' 32 add, with the other sign
  int32_t* pairs; // for each 4 dimensions codes 0 and 2, then 1 and 3
};

CodedQuery code_query(const RecallJob& job, const float* q, size_t g, int32_t* pairs) {
  constexpr float most = 8191; // times 63, of 4096 dimensions, is below 2^31
  CodedQuery coded{0, 0, 0, 0, 0, pairs};
  std::fill(pairs, pairs + 8 * code_parts(job.dim), 0);
  const float* centre = job.centres + g * (job.dim + 2);
  const float* bounds = centre + job.dim;
  double squares = 0, off = 0, coded_squares = 0, along = 0;
  float top = 0;
  for (size_t d = 0; d < job.dim; d++) {
    top = std::max(top, std::abs(q[d]));
    squares += double{q[d]} * q[d];
    along += double{q[d]} * centre[d];
  }
  coded.centre = static_cast<float>(along);
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

/** take(query, i, sums) of `MR` queries and `NV` vectors of keys: where their codes lie. */
template <int MR, size_t NV, class F>
HWY_INLINE void
multiply_codes(const int32_t* const (&keys)[NV], size_t parts, const CodedQuery* const (&queries)[MR], const F& take) {
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
        const VI word = hn::LoadU(d, keys[i] + (p * 3 + w) * code_group);
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
      take(m, i, sum);
    }
  }
}

/** The codes and scales of a kv head. */
struct Codes {
  const int32_t* codes;
  const float* scales; // of each group
  size_t words; // of a key

  Codes(const RecallJob& job, size_t g) : words(3 * code_parts(job.dim)) {
    const size_t groups = code_tiles(job.memories) * code_scales;
    codes = reinterpret_cast<const int32_t*>(job.codes) + g * groups * words * code_group;
    scales = job.scales + g * groups;
  }

  /** The vector of keys that begins with this one. */
  const int32_t* at(size_t key) const {
    return codes + key / code_group * words * code_group + key % code_group;
  }
};

constexpr size_t vectors = std::min<size_t>(many_registers ? 4 : 2, code_tile / lanes); // that are multiplied together

/** floors[query]: of each of the keys' groups the greatest lower end of a cosine. Tiles [begin, end) of a kv head. */
template <int MR>
HWY_NOINLINE void scan_tiles(
    const RecallJob& job,
    size_t g,
    size_t begin,
    size_t end,
    const CodedQuery* const (&queries)[MR],
    float* const (&floors)[MR]) {
  constexpr size_t groups = code_tile / code_group;
  const Codes codes(job, g);
  const I32 d;
  const VI least = hn::Set(d, std::numeric_limits<int32_t>::min());
  for (size_t t = begin; t < end; t++) {
    const size_t count = std::min(code_tile, job.memories - t * code_tile);
    VI best[MR][groups];
    for (auto& own : best) {
      for (VI& group : own) {
        group = least;
      }
    }
    for (size_t first = 0; first < code_tile; first += vectors * lanes) {
      const int32_t* keys[vectors];
      for (size_t i = 0; i < vectors; i++) {
        keys[i] = codes.at(t * code_tile + first + i * lanes);
      }
      multiply_codes<MR, vectors>(keys, codes.words / 3, queries, [&](int m, size_t i, VI sums) {
        const size_t at = first + i * lanes;
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
        const float low = (greatest * queries[m]->scale - queries[m]->bound) * codes.scales[t * groups + i];
        floors[m][t * groups + i] = i * code_group < count ? low : minus_infinity;
      }
    }
  }
}

/** A row's query as it is, and exact products with keys of its kv head; M: their kind. */
template <class M>
class Exact {
 public:
  Exact(const RecallJob& job, size_t row, size_t g, size_t most)
      : keys_(job.keys, g, job.memories, job.dim),
        norms_(job.inverse_norms + g * job.memories),
        dim_(round_up(job.dim, lanes)),
        most_(round_up(most, tile_keys)) {
    q_ = thread_scratch(scratch_rows, dim_ + tile_keys * dim_ + 2 * most_);
    widen(job.q + row * job.dim, job.dim, q_, dim_);
  }

  /** Soon needed. */
  void fetch(size_t key) const {
    keys_.fetch(key);
    hwy::Prefetch(norms_ + key);
  }

  void multiply_keys(const std::vector<uint32_t>& chosen) {
    std::fill(products(), products() + chosen.size(), 0.0f);
    float* floats = q_ + dim_;
    for (size_t first = 0; first < chosen.size(); first += tile_keys) {
      const size_t count = std::min(tile_keys, chosen.size() - first);
      for (size_t j = 0; j < count; j++) {
        const size_t key = chosen[first + j];
        keys_.read(key, floats + j * dim_);
        own_norms()[first + j] = norms_[key];
      }
      multiply({q_, dim_}, 1, Dense<float>{floats, dim_}, count, dim_, dim_, products() + first, tile_keys);
    }
  }
  // Of those, in their order.
  float* products() const {
    return q_ + dim_ + tile_keys * dim_;
  }
  float* own_norms() const {
    return products() + most_;
  }

 private:
  M keys_;
  const float* norms_;
  size_t dim_, most_;
  float* q_;
};

/** sums[i]: of the keys of the i-th of `groups`. */
void multiply_groups(
    const Codes& codes,
    const CodedQuery& query,
    const std::vector<uint32_t>& groups,
    std::vector<std::array<int32_t, code_group>>& sums) {
  sums.resize(groups.size());
  const CodedQuery* const queries[1] = {&query};
  constexpr size_t parts = code_group / lanes; // vectors of a group
  const size_t all = groups.size() * parts;
  for (size_t first = 0; first < all; first += vectors) {
    const int32_t* keys[vectors];
    for (size_t i = 0; i < vectors; i++) {
      const size_t v = std::min(first + i, all - 1);
      keys[i] = codes.at(groups[v / parts] * code_group + v % parts * lanes);
    }
    multiply_codes<1, vectors>(keys, codes.words / 3, queries, [&](int, size_t i, VI found) {
      const size_t v = std::min(first + i, all - 1);
      hn::StoreU(found, I32(), sums[v / parts].data() + v % parts * lanes);
    });
  }
}

/** What `choose` gives, by way of codes. */
template <class M>
std::vector<Chosen>
choose_coded(const RecallJob& job, size_t row, size_t g, const CodedQuery& query, const float* floors) {
  const Codes codes(job, g);
  std::vector<uint32_t> groups, keys;
  groups.reserve(8 * job.top_k);
  keys.reserve(4 * job.top_k);
  std::vector<std::array<int32_t, code_group>> sums;
  const auto add_group = [&](size_t i) {
    groups.push_back(static_cast<uint32_t>(i));
    for (size_t w = 0; w < codes.words; w++) {
      hwy::Prefetch(codes.at(i * code_group) + w * code_group);
    }
  };
  const auto size_of = [&](size_t i) { return std::min(code_group, job.memories - groups[i] * code_group); };
  // The most similar key of each of the best groups: their exact cosines are a better floor than all lower ends.
  for (const Candidate& group : greatest(floors, nullptr, code_tiles(job.memories) * code_scales, job.top_k)) {
    add_group(group.key);
  }
  multiply_groups(codes, query, groups, sums);
  Exact<M> first(job, row, g, job.top_k);
  for (size_t i = 0; i < groups.size(); i++) {
    const auto best = std::max_element(sums[i].begin(), sums[i].begin() + size_of(i)) - sums[i].begin();
    keys.push_back(static_cast<uint32_t>(groups[i] * code_group + best));
    first.fetch(keys.back());
  }
  first.multiply_keys(keys);
  float floor = std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < keys.size(); i++) {
    floor = std::min(floor, first.products()[i] * first.own_norms()[i]);
  }
  floor -= query.centre + query.slack;
  groups.clear();
  keys.clear();
  for (size_t i = 0; i * code_group < job.memories; i++) {
    if (!(floors[i] + 2 * query.bound * codes.scales[i] < floor)) {
      add_group(i);
    }
  }
  multiply_groups(codes, query, groups, sums);
  for (size_t i = 0; i < groups.size(); i++) {
    const float scale = codes.scales[groups[i]];
    for (size_t j = 0; j < size_of(i); j++) {
      if (!((static_cast<float>(sums[i][j]) * query.scale + query.bound) * scale < floor)) {
        keys.push_back(static_cast<uint32_t>(groups[i] * code_group + j));
        first.fetch(keys.back());
      }
    }
  }
  if (keys.size() < job.top_k) { // numbers that are none
    keys.resize(job.memories);
    std::iota(keys.begin(), keys.end(), 0);
  }
  Exact<M> exact(job, row, g, keys.size());
  exact.multiply_keys(keys);
  std::vector<Chosen> chosen;
  chosen.reserve(job.top_k);
  for (const Candidate& candidate : greatest(exact.products(), exact.own_norms(), keys.size(), job.top_k)) {
    chosen.push_back({keys[candidate.key], exact.products()[candidate.key]});
  }
  std::sort(chosen.begin(), chosen.end(), [](const Chosen& a, const Chosen& b) { return a.key < b.key; });
  return chosen;
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#endif
