// A layer that attends to chosen positions only, against a choice made by hand
// for each token, with scattered blocks.
#include "kv/cache.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

namespace parallm::test {

namespace {

constexpr int heads = 4, groups = 2, dims = 32, index_heads = 2, index_dims = 4;

struct Inputs { // of one sequence
  explicit Inputs(int count)
      : q(mx::random::normal({count, heads, dims})),
        k(mx::random::normal({count, groups, dims})),
        v(mx::random::normal({count, groups, dims})),
        index_q(mx::random::normal({count, index_heads, index_dims})),
        index_k(mx::random::normal({count, index_dims})),
        weights(mx::random::normal({count, index_heads})) {}
  mx::array q, k, v, index_q, index_k, weights;
};

struct Choice {
  int choices, block, local_blocks;
  bool weighted;
  int group = 1;
};

struct Part { // tokens [from, to) of a sequence, in a step
  const Inputs* of;
  int from, to;
  std::vector<int32_t> blocks;
};

mx::array step(Caches& caches, const std::vector<Part>& parts, const Choice& choice) {
  std::vector<Span> spans;
  int first = 0;
  for (auto& part : parts) {
    spans.push_back({first, part.to - part.from, part.from, part.blocks});
    first += part.to - part.from;
  }
  const auto join = [&](mx::array Inputs::*which) {
    std::vector<mx::array> all;
    for (auto& part : parts) {
      auto& x = part.of->*which;
      mx::Shape start(x.ndim(), 0);
      auto stop = x.shape();
      start[0] = part.from;
      stop[0] = part.to;
      all.push_back(mx::slice(x, start, stop));
    }
    return mx::concatenate(all, 0);
  };
  caches.begin(spans);
  KeySelector selector{
      join(&Inputs::index_q), join(&Inputs::index_k), nullptr, choice.choices, choice.block, choice.local_blocks, {}};
  if (choice.weighted) {
    selector.weights = join(&Inputs::weights);
  }
  selector.group = choice.group;
  auto& cache = caches.layer(0);
  auto q = join(&Inputs::q), k = join(&Inputs::k), v = join(&Inputs::v);
  Attention how{.scale = 0.3f, .sinks = {}};
  auto out = choice.group == 1 ? cache.attend_selected(q, k, v, how, selector)
                               : cache.attend_chosen(q, k, v, how, cache.choose(selector)).out;
  out = mx::contiguous(out);
  mx::eval(out);
  return out;
}

const float* data(const mx::array& x) {
  return x.data<float>();
}

/** The blocks that index head `i` chooses for token t; all heads together where weighted. */
std::set<int> chosen(const Inputs& in, int t, int i, const Choice& choice) {
  const int keys = (t + 1) / choice.group, last = (keys - 1) / choice.block;
  std::vector<double> score((keys + choice.block - 1) / choice.block, -INFINITY);
  for (int key = 0; key < keys; ++key) {
    const int s = (key + 1) * choice.group - 1;
    double sum = 0;
    for (int h = 0; h < index_heads; ++h) {
      double dot = 0;
      for (int d = 0; d < index_dims; ++d) {
        dot += data(in.index_q)[(t * index_heads + h) * index_dims + d] * data(in.index_k)[s * index_dims + d];
      }
      sum += choice.weighted ? data(in.weights)[t * index_heads + h] * std::max(dot, 0.0) : h == i ? dot : 0;
    }
    auto& best = score[key / choice.block];
    best = std::max(best, last - key / choice.block < choice.local_blocks ? INFINITY : sum);
  }
  std::vector<int> order(score.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return score[a] > score[b]; });
  order.resize(std::min<size_t>(order.size(), choice.choices));
  return {order.begin(), order.end()};
}

/** `allowed`: how far numbers may be off. */
void check_tokens(
    const mx::array& got,
    int at,
    const Inputs& in,
    int from,
    int to,
    const Choice& choice,
    double allowed = 1e-4) {
  for (int t = from; t < to; ++t) {
    for (int h = 0; h < heads; ++h) {
      auto blocks = chosen(in, t, h / (heads / index_heads), choice);
      std::vector<double> out(dims);
      double mass = 0;
      for (int s = 0; s <= t; ++s) {
        if ((s + 1) % choice.group != 0 || !blocks.count(s / choice.group / choice.block)) {
          continue;
        }
        int place = (s * groups + h / (heads / groups)) * dims;
        double dot = 0;
        for (int d = 0; d < dims; ++d) {
          dot += data(in.q)[(t * heads + h) * dims + d] * data(in.k)[place + d];
        }
        double weight = std::exp(0.3 * dot);
        mass += weight;
        for (int d = 0; d < dims; ++d) {
          out[d] += weight * data(in.v)[place + d];
        }
      }
      for (int d = 0; d < dims; ++d) {
        CAPTURE(t);
        const double want = mass == 0 ? 0 : out[d] / mass;
        CHECK(std::abs(data(got)[((at + t - from) * heads + h) * dims + d] - want) < allowed);
      }
    }
  }
}

} // namespace

TEST_CASE("selection: each token attends to the chosen positions, prefilled in chunks, decoded alone or in company") {
  for (auto choice :
       {Choice{3, 1, 0, true},
        Choice{3, 1, 0, false},
        Choice{2, 3, 1, false},
        Choice{2, 3, 1, true},
        Choice{2, 1, 0, true, 3},
        Choice{2, 2, 1, true, 3}}) {
    for (bool mlx_ops : {false, true}) {
      CAPTURE(choice.block);
      CAPTURE(choice.weighted);
      CAPTURE(choice.group);
      mx::random::seed(7);
      Inputs a(20), b(11);
      mx::eval(a.q, a.k, a.v, a.index_q, a.index_k, a.weights, b.q, b.k, b.v, b.index_q, b.index_k, b.weights);
      std::vector<CacheSpec> specs = {{groups, dims, dims, {}, index_dims}};
      KVOptions options{.block_size = 4, .blocks = 300, .dtype = mx::float32};
      auto caches = make_paged_caches(specs, options, mlx_ops);
      std::vector<int32_t> a_blocks = {299, 3, 7, 40, 2}, b_blocks = {5, 120, 6};
      check_tokens(step(*caches, {{&a, 0, 9, a_blocks}}, choice), 0, a, 0, 9, choice);
      check_tokens(step(*caches, {{&a, 9, 18, a_blocks}}, choice), 0, a, 9, 18, choice);
      auto both = step(*caches, {{&b, 0, 10, b_blocks}, {&a, 18, 19, a_blocks}}, choice);
      check_tokens(both, 0, b, 0, 10, choice);
      check_tokens(both, 10, a, 18, 19, choice);
      both = step(*caches, {{&b, 10, 11, b_blocks}, {&a, 19, 20, a_blocks}}, choice);
      check_tokens(both, 0, b, 10, 11, choice);
      check_tokens(both, 1, a, 19, 20, choice);

      auto alone = make_paged_caches(specs, options, mlx_ops);
      step(*alone, {{&a, 0, 9, a_blocks}}, choice);
      step(*alone, {{&a, 9, 18, a_blocks}}, choice);
      step(*alone, {{&a, 18, 19, a_blocks}}, choice);
      auto last = step(*alone, {{&a, 19, 20, a_blocks}}, choice);
      CHECK(std::equal(data(last), data(last) + heads * dims, data(both) + heads * dims));
    }
  }
}

TEST_CASE("selection: of keys and values in codes, index keys stay as they are") {
  for (bool mlx_ops : {false, true}) {
    CAPTURE(mlx_ops);
    mx::random::seed(7);
    Inputs a(12);
    mx::eval(a.q, a.k, a.v, a.index_q, a.index_k, a.weights);
    KVOptions options{.block_size = 4, .blocks = 8, .dtype = mx::float32, .bits = 8};
    auto caches = make_paged_caches({{groups, dims, dims, {}, index_dims}}, options, mlx_ops);
    Choice choice{3, 1, 0, true};
    check_tokens(step(*caches, {{&a, 0, 11, {5, 0, 3}}}, choice), 0, a, 0, 11, choice, 0.1);
    check_tokens(step(*caches, {{&a, 11, 12, {5, 0, 3}}}, choice), 0, a, 11, 12, choice, 0.1);
  }
  KVOptions coded{.block_size = 16, .dtype = mx::float16, .bits = 8};
  CHECK(kv_block_bytes({{2, 64, 64, {}, 8}}, coded) == 16 * (2 * 2 * (64 + 8) + 8 * 2));
}

} // namespace parallm::test
