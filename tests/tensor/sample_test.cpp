// rms_norm, swiglu and dequantize_rows against MLX's own ops; sample against a sort in float64.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/recurrent_ops.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <vector>

namespace mx = mlx::core;
using namespace parallm;

namespace {

const float inf = std::numeric_limits<float>::infinity();
const float none = std::numeric_limits<float>::quiet_NaN();

double worst(const mx::array& a, const mx::array& b) {
  return mx::max(mx::abs(mx::astype(a, mx::float32) - mx::astype(b, mx::float32))).item<float>();
}

struct Draw {
  float temperature = 1;
  int top_k = 0;
  float top_p = 1, min_p = 0, draw = 0;
};

std::vector<int> sample_rows(const std::vector<std::vector<float>>& logits, const std::vector<Draw>& draws) {
  std::vector<float> l, t, p, m, u;
  std::vector<int32_t> k;
  const int R = static_cast<int>(draws.size());
  for (int r = 0; r < R; r++) {
    l.insert(l.end(), logits[r].begin(), logits[r].end());
    t.push_back(draws[r].temperature);
    k.push_back(draws[r].top_k);
    p.push_back(draws[r].top_p);
    m.push_back(draws[r].min_p);
    u.push_back(draws[r].draw);
  }
  const mx::Shape rows{R};
  auto out = cpu::sample(
      mx::array(l.data(), {R, static_cast<int>(logits[0].size())}),
      mx::array(t.data(), rows),
      mx::array(k.data(), rows),
      mx::array(p.data(), rows),
      mx::array(m.data(), rows),
      mx::array(u.data(), rows));
  mx::eval(out);
  return {out.data<int32_t>(), out.data<int32_t>() + R};
}

int sample(const std::vector<float>& logits, Draw draw) {
  return sample_rows({logits}, {draw})[0];
}

/** token -> probability, by sorting. */
std::map<int, double> kept(const std::vector<float>& l, Draw d) {
  const int V = static_cast<int>(l.size());
  std::vector<int> order(V);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return l[a] > l[b]; });
  const double top = l[order[0]];
  const auto w = [&](int i) { return std::exp((l[i] - top) / d.temperature); };
  double least = d.min_p;
  if (d.top_k > 0 && d.top_k < V) {
    least = std::max(least, w(order[d.top_k - 1]));
  }
  double total = 0, sum = 0;
  for (int i : order) {
    total += w(i) >= least ? w(i) : 0;
  }
  double border = least;
  for (int i : order) {
    if (w(i) >= least && sum < d.top_p * total) {
      border = w(i);
      sum += w(i);
    }
  }
  std::map<int, double> p;
  total = 0;
  for (int i : order) {
    total += w(i) >= border ? w(i) : 0;
  }
  for (int i = 0; i < V; i++) {
    if (w(i) >= border) {
      p[i] = w(i) / total;
    }
  }
  return p;
}

std::vector<float> random_logits(int size, float spread, int seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<float> l(size);
  for (float& x : l) {
    x = normal(random);
  }
  return l;
}

} // namespace

TEST_CASE("rows of codes are what mx::dequantize makes of them") {
  const int count = 20, width = 384;
  const auto ids = mx::array({3, 19, 0, 3, 7}, mx::int32);
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      const auto q =
          mx::quantize(mx::random::normal({count, width}, mx::float32, mx::random::key(bits)), group, bits, "affine");
      for (auto type : {mx::float32, mx::float16, mx::bfloat16}) {
        INFO("bits ", bits, " group ", group);
        const auto s = mx::astype(q[1], type), b = mx::astype(q[2], type);
        const auto wanted =
            mx::take(mx::dequantize(q[0], mx::astype(s, mx::float32), mx::astype(b, mx::float32), group, bits), ids, 0);
        CHECK(worst(cpu::dequantize_rows(ids, q[0], s, b, group, bits, mx::float32), wanted) < 1e-6);
        const auto rounded = cpu::dequantize_rows(ids, q[0], s, b, group, bits, type);
        CHECK(rounded.dtype() == type);
        CHECK(worst(rounded, wanted) <= 4 * (type == mx::float32 ? 1e-6 : type == mx::float16 ? 0x1p-11 : 0x1p-8));
      }
    }
  }
  const auto q = mx::quantize(mx::ones({2, 32}), 32, 4, "affine");
  const auto beside = cpu::dequantize_rows(mx::array({2, 1, -1}, mx::int32), q[0], q[1], q[2], 32, 4, mx::float32);
  CHECK(mx::array_equal(mx::isnan(mx::slice(beside, {0, 0}, {3, 1})), mx::array({true, false, true}, {3, 1}))
            .item<bool>());
  CHECK_THROWS_AS(cpu::dequantize_rows(mx::array({0.0f}), q[0], q[1], q[2], 32, 4, mx::float32), std::invalid_argument);
  CHECK_THROWS_AS(cpu::dequantize_rows(ids, q[0], q[1], q[2], 64, 4, mx::float32), std::invalid_argument);
}

TEST_CASE("rms_norm and swiglu equal MLX's ops, and rows are independent") {
  for (auto type : {mx::float32, mx::float16, mx::bfloat16}) {
    const double allowed = type == mx::float32 ? 1e-5 : type == mx::float16 ? 4e-3 : 4e-2;
    for (int width : {1, 7, 576, 1030}) {
      const auto x = mx::astype(mx::random::normal({37, width}) * mx::array(2.0f), type);
      const auto up = mx::astype(mx::random::normal({37, width}), type);
      const auto weight = mx::astype(mx::random::normal({width}), type);
      const auto wide = mx::astype(x, mx::float32);
      const auto norm = cpu::rms_norm(x, weight, 1e-5f);
      CHECK(norm.dtype() == type);
      CHECK(worst(norm, mx::fast::rms_norm(wide, mx::astype(weight, mx::float32), 1e-5f)) < allowed);
      const auto product = cpu::swiglu(x, up);
      CHECK(worst(product, wide * mx::sigmoid(wide) * mx::astype(up, mx::float32)) < 3 * allowed);
      const auto row = [&](const mx::array& a) { return mx::slice(a, {20, 0}, {21, width}); };
      CHECK(mx::array_equal(cpu::rms_norm(row(x), weight, 1e-5f), row(norm)).item<bool>());
      CHECK(mx::array_equal(cpu::swiglu(row(x), row(up)), row(product)).item<bool>());
    }
  }
}

TEST_CASE("swiglu and the convolution's silu are 0 far below 0, where exp(-x) has no float") {
  const std::vector<float> far = {-90, -150, -178, -200, -1000, -60000, 0, 200};
  const auto x = mx::array(far.data(), {1, 8});
  const auto expected = mx::maximum(x, mx::array(0.0f));
  CHECK(worst(cpu::swiglu(x, mx::ones({1, 8})), expected) < 1e-30);
  const auto [out, state] =
      cpu::causal_conv(mx::reshape(x, {1, 1, 8}), mx::ones({2, 8}), std::nullopt, true, mx::zeros({1, 1, 8}));
  CHECK(worst(mx::flatten(out), mx::flatten(expected)) < 1e-30);
}

TEST_CASE("sample: temperature 0 is the first of the greatest logits") {
  CHECK(sample({1, 5, 5, 2}, {.temperature = 0, .draw = 0.99f}) == 1);
  auto l = random_logits(1003, 1, 1);
  l[1001] = l[777] = 50;
  CHECK(sample(l, {.temperature = 0}) == 777);
  CHECK(sample({none, -1, none, 3, 3}, {.temperature = 0}) == 3);
  CHECK(sample({none, none}, {.temperature = 0}) == 0);
  CHECK(sample({-inf, -inf, 4}, {.temperature = 0}) == 2);
}

TEST_CASE("sample: odd logits never pick a token that has no mass") {
  CHECK(sample({none, 1, -inf}, {.draw = 0}) == 1);
  CHECK(sample({none, 1, -inf}, {.draw = 0.9999999f}) == 1);
  CHECK(sample({0, inf, 3}, {.draw = 0.9f}) == 1);
  CHECK(sample({none, none, none}, {.top_k = 2, .top_p = 0.5f, .draw = 0.9f}) == 0);
  CHECK(sample({2, 1}, {.temperature = 1e-30f, .draw = 0.9f}) == 0);
  CHECK(sample({2, 1}, {.min_p = 1, .draw = 0.9f}) == 0);
}

TEST_CASE("sample: ties at a filter's border stay in") {
  const std::vector<float> l{1, 3, 2, 2, 2};
  std::map<int, int> counts;
  for (int i = 0; i < 400; i++) {
    counts[sample(l, {.top_k = 2, .draw = i / 400.0f})]++;
  }
  CHECK(counts.size() == 4);
  CHECK(counts.count(0) == 0);
  CHECK(sample({0, 0, 0, 0}, {.top_p = 0.1f, .draw = 0.99f}) == 3);
}

TEST_CASE("sample draws what a sort in float64 keeps, with its probabilities") {
  const std::vector<Draw> draws{
      {},
      {.temperature = 0.3f},
      {.top_k = 1},
      {.top_k = 40},
      {.top_p = 0.9f},
      {.top_p = 0.999f},
      {.top_p = 1e-4f},
      {.min_p = 0.05f},
      {.temperature = 2, .top_k = 100, .top_p = 0.7f, .min_p = 0.01f},
      {.top_k = 5000},
      {.temperature = 0.7f, .top_k = 7, .top_p = 0.95f}};
  for (int V : {5, 100, 3001}) {
    for (float spread : {0.1f, 3.0f, 12.0f}) {
      const auto l = random_logits(V, spread, V);
      for (size_t n = 0; n < draws.size(); n++) {
        INFO("V ", V, " spread ", spread, " draw ", n);
        const auto p = kept(l, draws[n]);
        std::vector<Draw> rows(64, draws[n]);
        for (size_t i = 0; i < rows.size(); i++) {
          rows[i].draw = (i + 0.31f) / rows.size();
        }
        const auto tokens = sample_rows(std::vector(rows.size(), l), rows);
        for (size_t i = 0; i < rows.size(); i++) {
          REQUIRE(p.count(tokens[i]) == 1);
          double before = 0;
          for (auto [token, mass] : p) {
            if (token == tokens[i]) {
              CHECK(before <= rows[i].draw + 1e-5);
              CHECK(before + mass >= rows[i].draw - 1e-5);
              break;
            }
            before += mass;
          }
        }
        CHECK(sample(l, rows[33]) == tokens[33]);
      }
    }
  }
}
