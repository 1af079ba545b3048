// Extended Mind attention (arXiv 2406.02332) in two stages: all products of
// queries and keys, stretch by stretch of the keys, each key loaded once for
// the heads and tokens that share it; then for each query the greatest of them
// and its softmax. What a query gets depends on its own numbers alone. Of many
// keys, the first stage reads codes (recall_codes-inl.h), which changes nothing
// but the time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recall_simd.cpp"
#define HWY_WANT_AVX3_DL // has VNNI
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/recall_codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr size_t stretch = 512; // keys of an item
constexpr size_t tile_rows = 32; // query heads of one kv head that share loads, about
constexpr size_t most_products = 8 << 20; // alive at once
constexpr size_t stretch_tiles = 16; // of an item that reads codes
constexpr size_t codes_pay = 12; // groups of keys for each of the top_k, from which on codes are read

/** Tokens [first, first + count) of one kv head by keys from `begin` on. */
struct Item {
  size_t first, count, kv_head, begin;
};

/** products [.., N]: rows are heads of tokens, counted from the token `base`; M: the memories' kind. */
template <class M>
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
  const M keys(job.keys, item.kv_head, job.memories, job.dim);
  const size_t end = std::min(job.memories, item.begin + stretch);
  for (size_t n = item.begin; n < end; n += tile_keys) {
    const size_t count = std::min(tile_keys, end - n);
    std::fill(sums, sums + rows * tile_keys, 0.0f);
    if (direct) {
      multiply({q, dim}, rows, keys.from(n), count, dim, keys.group(), sums, tile_keys);
    } else {
      for (size_t j = 0; j < count; j++) {
        keys.read(n + j, floats + j * dim);
      }
      multiply({q, dim}, rows, Dense<float>{floats, dim}, count, dim, dim, sums, tile_keys);
    }
    for (size_t row = 0; row < rows; row++) {
      const size_t t = item.first + row / heads - base, h = item.kv_head * heads + row % heads;
      std::copy_n(sums + row * tile_keys, count, products + (t * job.heads + h) * job.memories + n);
    }
  }
}

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

/** A query's length. */
float length_of(const RecallJob& job, size_t row) {
  const float* q = job.q + row * job.dim;
  double squares = 0;
  for (size_t i = 0; i < job.dim; i++) {
    squares += double{q[i]} * q[i];
  }
  return static_cast<float>(std::sqrt(squares));
}

/** The most memories that a query attends to. */
size_t most_chosen(const RecallJob& job) {
  return std::min(job.memories, job.top_k * job.block);
}

/** The blocks of those of `chosen` that the threshold keeps, each once, in rising order. */
template <class M>
std::vector<Chosen> whole_blocks(const RecallJob& job, size_t row, size_t g, const std::vector<Chosen>& chosen) {
  const float* norms = job.inverse_norms + g * job.memories;
  const float least_product = job.threshold ? *job.threshold * length_of(job, row) : 0;
  std::vector<uint32_t> keys;
  size_t text = 0, end = 0; // `end`: of the last block
  for (const auto& [key, product] : chosen) {
    if (key < end || (job.threshold && !(product * norms[key] > least_product))) {
      continue;
    }
    while (text + 1 < job.texts && static_cast<size_t>(job.starts[text + 1]) <= key) {
      text++;
    }
    const size_t first = job.starts[text], last = text + 1 < job.texts ? job.starts[text + 1] : job.memories;
    const size_t begin = first + (key - first) / job.block * job.block;
    end = std::min(begin + job.block, last);
    for (size_t n = begin; n < end; n++) {
      keys.push_back(static_cast<uint32_t>(n));
    }
  }
  Exact<M> exact(job, row, g, keys.size());
  exact.multiply_keys(keys);
  std::vector<Chosen> all;
  all.reserve(keys.size());
  for (size_t i = 0; i < keys.size(); i++) {
    all.push_back({keys[i], exact.products()[i]});
  }
  return all;
}

/** What a head of a token gives to one memory. */
struct Given {
  uint32_t memory;
  float weight; // negative: left out
  float cosine;
};

/** Softmax and sum of a head of a token. `given`, where not null: [most_chosen], all written. */
template <class T, class M>
void finish(const RecallJob& job, size_t row, size_t g, const std::vector<Chosen>& chosen, Given* given) {
  const float* norms = job.inverse_norms + g * job.memories;
  const size_t v_dim = round_up(job.v_dim, lanes);
  float* weights = thread_scratch(scratch_weights, round_up(chosen.size(), 16) + 2 * v_dim);
  float* out = weights + round_up(chosen.size(), 16);
  float* value = out + v_dim;
  float length = 0, least_product = minus_infinity; // of cosine 1
  const bool sieved = job.threshold && job.block == 1; // else blocks are whole
  if (sieved || given) {
    length = length_of(job, row);
  }
  if (sieved) {
    least_product = *job.threshold * length;
  }
  float top = job.masses[row];
  for (size_t i = 0; i < chosen.size(); i++) {
    const auto [key, product] = chosen[i];
    float score = product * job.scale;
    if (job.softcap > 0) {
      score = job.softcap * std::tanh(score / job.softcap);
    }
    if (sieved && !(product * norms[key] > least_product)) {
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
  const M values(job.values, g, job.memories, job.v_dim);
  for (size_t c = 0; c < std::min<size_t>(chosen.size(), 64); c++) {
    values.fetch(chosen[c].key);
  }
  for (size_t c = 0; c < chosen.size(); c++) {
    const auto [key, product] = chosen[c];
    const float weight = std::exp(weights[c] - top);
    total += weight;
    if (given) {
      const float cosine = product * norms[key] / std::max(length, 1e-12f);
      given[c] = {key, weights[c] == minus_infinity ? -1 : weight, cosine};
    }
    values.read(key, value);
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
  for (size_t c = chosen.size(); given && c < most_chosen(job); c++) {
    given[c] = {0, -1, 0};
  }
}

/** Adds what a token's heads give, head after head. */
void add_record(const RecallJob& job, const Given* given, float* record) {
  float *masses = record, *cosines = masses + job.memories, *counts = cosines + job.memories;
  for (size_t i = 0; i < job.heads * most_chosen(job); i++) {
    const auto& [n, weight, cosine] = given[i];
    if (weight >= 0) {
      masses[n] += weight;
      cosines[n] = std::max(cosines[n], cosine);
      counts[n] += 1;
    }
  }
}

/** Tokens [base, base + tokens): for each of their heads `chosen`(row, place among them, kv head) is finished. */
template <class T, class M, class F>
void finish_all(const RecallJob& job, size_t base, size_t tokens, const F& chosen) {
  const size_t shared = job.heads / job.kv_heads, most = most_chosen(job), record_size = job.heads * most;
  std::vector<Given> given(job.record ? tokens * record_size : 0);
  parallel_for(tokens * job.heads, [&](size_t i) {
    const size_t row = base * job.heads + i, g = i % job.heads / shared;
    auto own = chosen(row, i, g);
    if (job.block > 1) {
      own = whole_blocks<M>(job, row, g, own);
    }
    finish<T, M>(job, row, g, own, job.record ? given.data() + i * most : nullptr);
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

template <class T, class M>
void run(const RecallJob& job) {
  const size_t most = round_tokens(job, job.memories);
  // Kept by this thread: fresh memory of this size would be mapped anew for each layer.
  float* products = thread_scratch(scratch_products, most * job.heads * job.memories);
  for (size_t base = 0; base < job.tokens; base += most) {
    const size_t tokens = std::min(most, job.tokens - base);
    const auto items = items_of(job, base, tokens, job.memories, stretch);
    parallel_for(items.size(), [&](size_t i) { multiply_stretch<M>(job, items[i], base, products); });
    finish_all<T, M>(job, base, tokens, [&](size_t, size_t i, size_t g) {
      return choose(job, products + i * job.memories, job.by_dot ? nullptr : job.inverse_norms + g * job.memories);
    });
  }
}

template <class T, class M>
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
    finish_all<T, M>(job, base, tokens, [&](size_t row, size_t i, size_t g) {
      return choose_coded<M>(job, row, g, queries[i], floors + i * groups);
    });
  }
}

template <class T, class M>
void run_either(const RecallJob& job) {
  const size_t groups = (job.memories + code_group - 1) / code_group;
  const bool coded = job.codes && !job.by_dot && job.top_k > 0 && codes_pay * job.top_k <= groups;
  coded ? run_coded<T, M>(job) : run<T, M>(job);
}

void Run(const RecallJob& job) {
  with_type(job.type, job.local, [&]<class T>(const T*) {
    if (job.keys.scales) {
      return run_either<T, CodeRowsOf>(job);
    }
    with_type(job.memory_type, job.keys.data, [&]<class P>(const P*) { run_either<T, FloatRowsOf<P>>(job); });
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
