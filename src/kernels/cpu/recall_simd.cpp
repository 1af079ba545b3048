// Extended Mind attention (arXiv 2406.02332) in two stages: all products of
// queries and keys, stretch by stretch of the keys, each key loaded once for
// the heads and tokens that share it; then for each query the greatest of them
// and its softmax. What a query gets depends on its own numbers alone.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recall_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/recall.h"
#include "kernels/cpu/simd-inl.h"

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

/** The places of the top_k greatest products (times `norms`, where not null), rising. */
std::vector<uint32_t> choose(const RecallJob& job, const float* products, const float* norms) {
  if (job.top_k == job.memories) {
    std::vector<uint32_t> all(job.memories);
    std::iota(all.begin(), all.end(), 0);
    return all;
  }
  std::vector<Candidate> heap; // its front is the least
  heap.reserve(job.top_k);
  float least = minus_infinity;
  const auto offer = [&](float rank, size_t n) {
    if (heap.size() < job.top_k) {
      heap.push_back({rank, static_cast<uint32_t>(n)});
      if (heap.size() == job.top_k) {
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
  for (; n + lanes <= job.memories; n += lanes) {
    const V rank = norms ? hn::Mul(load(products + n), load(norms + n)) : load(products + n);
    if (heap.size() == job.top_k && hn::AllFalse(d, hn::Gt(rank, hn::Set(d, least)))) {
      continue;
    }
    alignas(64) float ranks[lanes];
    store(rank, ranks);
    for (size_t i = 0; i < lanes; i++) {
      offer(ranks[i], n + i);
    }
  }
  for (; n < job.memories; n++) {
    offer(norms ? products[n] * norms[n] : products[n], n);
  }
  std::vector<uint32_t> chosen;
  chosen.reserve(heap.size());
  for (const Candidate& candidate : heap) {
    chosen.push_back(candidate.key);
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

template <class T, class P>
void finish(const RecallJob& job, size_t t, size_t h, const float* products) {
  const size_t g = h / (job.heads / job.kv_heads), row = t * job.heads + h;
  const float* norms = job.inverse_norms + g * job.memories;
  const auto chosen = choose(job, products, job.by_dot ? nullptr : norms);
  const size_t v_dim = round_up(job.v_dim, lanes);
  float* weights = thread_scratch(scratch_weights, round_up(chosen.size(), 16) + 2 * v_dim);
  float* out = weights + round_up(chosen.size(), 16);
  float* value = out + v_dim;
  const float* q = job.q + row * job.dim;
  float least_product = minus_infinity; // of cosine 1
  if (job.threshold) {
    double squares = 0;
    for (size_t i = 0; i < job.dim; i++) {
      squares += double{q[i]} * q[i];
    }
    least_product = *job.threshold * static_cast<float>(std::sqrt(squares));
  }
  float top = job.masses[row];
  for (size_t i = 0; i < chosen.size(); i++) {
    const float product = products[chosen[i]];
    float score = product * job.scale;
    if (job.softcap > 0) {
      score = job.softcap * std::tanh(score / job.softcap);
    }
    if (job.threshold && !(product * norms[chosen[i]] > least_product)) {
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
    const float weight = std::exp(weights[c] - top);
    total += weight;
    widen(values + chosen[c] * job.v_dim, job.v_dim, value, v_dim);
    for (size_t i = 0; i < v_dim; i += lanes) {
      store(hn::MulAdd(hn::Set(F32(), weight), load(value + i), load(out + i)), out + i);
    }
  }
  for (size_t i = 0; i < v_dim; i += lanes) {
    store(hn::Div(load(out + i), hn::Set(F32(), total)), out + i);
  }
  narrow(out, job.v_dim, static_cast<T*>(job.out) + row * job.v_dim);
}

template <class T, class P>
void run(const RecallJob& job) {
  const size_t heads = job.heads / job.kv_heads;
  const size_t shared = std::max<size_t>(1, tile_rows / heads); // tokens of an item
  const size_t most = std::max<size_t>(1, most_products / (job.heads * job.memories)); // tokens of a round
  // Kept by this thread: fresh memory of this size would be mapped anew for each layer.
  float* products = thread_scratch(scratch_products, std::min(most, job.tokens) * job.heads * job.memories);
  for (size_t base = 0; base < job.tokens; base += most) {
    const size_t tokens = std::min(most, job.tokens - base);
    std::vector<Item> items;
    for (size_t g = 0; g < job.kv_heads; g++) {
      for (size_t n = 0; n < job.memories; n += stretch) {
        for (size_t i = 0; i < tokens; i += shared) {
          items.push_back({base + i, std::min(shared, tokens - i), g, n});
        }
      }
    }
    parallel_for(items.size(), [&](size_t i) { multiply_stretch<P>(job, items[i], base, products); });
    parallel_for(tokens * job.heads, [&](size_t i) {
      finish<T, P>(job, base + i / job.heads, i % job.heads, products + i * job.memories);
    });
  }
}

void Run(const RecallJob& job) {
  with_type(job.type, job.local, [&]<class T>(const T*) {
    with_type(job.memory_type, job.keys, [&]<class P>(const P*) { run<T, P>(job); });
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
