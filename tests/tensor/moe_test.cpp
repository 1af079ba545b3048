// Mixture of experts against plain loops in double: the kernels' grouped matmuls and routing, MLX's ops beside them,
// and the promise that a token's result does not depend on its neighbours.
#include "golden.h"
#include "kernels/cpu/ops.h"
#include "nn/moe.h"

#include <cstring>
#include <limits>
#include <random>

namespace parallm::test {

namespace {

mx::array normal(const mx::Shape& shape, mx::Dtype type, int seed) {
  return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), type);
}

mx::array int32s(const std::vector<int>& values, const mx::Shape& shape) {
  return mx::array(values.data(), shape, mx::int32);
}

/** Greatest difference of y from x w[which]ᵀ + bias, relative to the sum of the terms' magnitudes. */
double worst_error(
    const mx::array& y,
    const mx::array& x,
    const mx::array& w,
    const std::vector<int>& which,
    const std::optional<mx::array>& bias) {
  const size_t k = x.shape(1), n = w.shape(1);
  const auto ys = floats(y), xs = floats(x), ws = floats(w);
  const auto bs = bias ? floats(*bias) : std::vector<float>(w.shape(0) * n);
  REQUIRE(ys.size() == which.size() * n);
  double worst = 0;
  for (size_t m = 0; m < which.size(); m++) {
    for (size_t j = 0; j < n; j++) {
      double sum = bs[which[m] * n + j], size = std::abs(sum) + 1e-30;
      for (size_t i = 0; i < k; i++) {
        double term = double(xs[m * k + i]) * ws[(which[m] * n + j) * k + i];
        sum += term;
        size += std::abs(term);
      }
      double error = std::abs(ys[m * n + j] - sum) / size;
      worst = std::isnan(error) ? 1e9 : std::max(worst, error);
    }
  }
  return worst;
}

Weights weights_of(
    std::unordered_map<std::string, mx::array> arrays,
    std::optional<Quantization> how = {},
    mx::Dtype dtype = mx::float32) {
  return Weights(std::move(arrays), Quantizations{std::move(how), {}}, dtype);
}

// Experts 0 and 4 of 6 are chosen by nobody; 5 by one row.
const std::vector<int> some{1, 1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 5};

std::vector<float> row(const mx::array& x, int i) {
  return floats(mx::slice(x, {i, 0}, {i + 1, x.shape(1)}));
}

} // namespace

TEST_CASE("moe: dense experts equal a loop over rows, on kernels and on MLX's ops") {
  for (bool mlx_ops : {false, true}) {
    MlxOps ops(mlx_ops);
    for (auto type : {mx::float32, mx::float16, mx::bfloat16}) {
      for (auto [k, n] : {std::pair(64, 48), {77, 13}, {1, 1}, {1029, 9}}) {
        for (bool with_bias : {false, true}) {
          for (auto& which : {some, std::vector<int>{4}, std::vector<int>(9, 0)}) {
            int rows = which.size();
            auto x = normal({rows, k}, type, 1), w = normal({6, n, k}, type, 2), bias = normal({6, n}, type, 3);
            std::unordered_map<std::string, mx::array> arrays{{"e.weight", w}};
            if (with_bias) {
              arrays.emplace("e.bias", bias);
            }
            auto weights = weights_of(arrays, {}, type);
            Experts experts(weights, "e", 6, n, k, with_bias);
            auto y = experts(x, int32s(which, {rows}));
            CAPTURE(mlx_ops);
            CAPTURE(k);
            CHECK(y.dtype() == type);
            double bound = type == mx::float32 ? 1e-6 : type == mx::float16 ? 2e-3 : 2e-2;
            CHECK(worst_error(y, x, w, which, with_bias ? std::optional(bias) : std::nullopt) < bound);
          }
        }
      }
    }
  }
}

TEST_CASE("moe: quantized experts equal a loop over rows of dequantized weights, in all modes") {
  struct Form {
    std::string mode;
    int group, bits;
  };
  std::vector<Form> forms{{"mxfp4", 32, 4}, {"mxfp8", 32, 8}, {"nvfp4", 16, 4}};
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      forms.push_back({"affine", group, bits});
    }
  }
  for (bool mlx_ops : {false, true}) {
    MlxOps ops(mlx_ops);
    for (auto& form : forms) {
      for (auto& which : {some, std::vector<int>{4}}) {
        const int k = 384, n = 45, rows = which.size();
        auto x = normal({rows, k}, mx::float32, 1), dense = normal({6, n, k}, mx::float32, 2);
        auto bias = normal({6, n}, mx::float32, 3);
        auto q = mx::quantize(dense, form.group, form.bits, form.mode);
        std::unordered_map<std::string, mx::array> arrays{{"e.weight", q[0]}, {"e.scales", q[1]}, {"e.bias", bias}};
        std::optional<mx::array> biases;
        if (q.size() > 2) {
          biases = q[2];
          arrays.emplace("e.biases", q[2]);
        }
        auto w = mx::dequantize(q[0], q[1], biases, form.group, form.bits, form.mode, {}, mx::float32);
        auto weights = weights_of(arrays, Quantization{form.group, form.bits, form.mode});
        Experts experts(weights, "e", 6, n, k, true);
        CAPTURE(mlx_ops);
        CAPTURE(form.mode);
        CAPTURE(form.bits);
        CAPTURE(form.group);
        const bool codes = form.mode == "affine" && !mlx_ops; // x is rounded to 16-bit codes
        CHECK(worst_error(experts(x, int32s(which, {rows})), x, w, which, bias) < (codes ? 1.5e-5 : 1e-6));
      }
    }
  }
}

TEST_CASE("moe: top_experts gives the greatest in falling order, the first of equal ones first") {
  auto scores = mx::array({3.f, 1.f, 3.f, -2.f, 7.f, 3.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f}, {2, 6});
  for (bool mlx_ops : {false, true}) {
    MlxOps ops(mlx_ops);
    for (auto type : {mx::float32, mx::float16, mx::bfloat16}) {
      auto typed = mx::astype(scores, type);
      CHECK(ints(top_experts(typed, 3)) == std::vector<int>{4, 0, 2, 0, 1, 2});
      CHECK(ints(top_experts(typed, 6)) == std::vector<int>{4, 0, 2, 5, 1, 3, 0, 1, 2, 3, 4, 5});
    }
  }
  auto random = normal({50, 128}, mx::float32, 4);
  auto kernel = ints(cpu::greatest(random, 8));
  MlxOps ops(true);
  CHECK(kernel == ints(top_experts(random, 8)));
}

TEST_CASE("moe: the greatest of scores with NaN are numbers first") {
  float nan = std::numeric_limits<float>::quiet_NaN();
  auto scores = mx::array({nan, 1.f, nan, 5.f}, {1, 4});
  CHECK(ints(cpu::greatest(scores, 2)) == std::vector<int>{3, 1});
  CHECK(ints(cpu::greatest(scores, 4)) == std::vector<int>{3, 1, 0, 2});
  CHECK_THROWS_AS(cpu::greatest(scores, 5), std::invalid_argument);
}

TEST_CASE("moe: routing by the kernel is the routing by MLX's sorts") {
  std::mt19937 random(7);
  for (int tokens : {1, 3, 40}) {
    std::vector<int> chosen(tokens * 4);
    for (auto& expert : chosen) {
      expert = random() % 9;
    }
    auto experts = int32s(chosen, {tokens, 4});
    auto x = normal({tokens, 24}, mx::float32, 5);
    auto y = normal({tokens * 4, 33}, mx::float32, 6), weights = normal({tokens, 4}, mx::float32, 7);
    Routing kernel(experts, 9);
    auto rows = floats(kernel.gather(x)), sums = floats(kernel.weigh(y, weights));
    auto order = ints(kernel.experts());
    CHECK(std::is_sorted(order.begin(), order.end()));
    MlxOps ops(true);
    Routing sorted(experts, 9);
    CHECK(order == ints(sorted.experts()));
    CHECK(rows == floats(sorted.gather(x)));
    auto wanted = floats(sorted.weigh(y, weights));
    for (size_t i = 0; i < sums.size(); i++) {
      CHECK(sums[i] == doctest::Approx(wanted[i]).epsilon(1e-5));
    }
  }
}

TEST_CASE("moe: a block of experts equals the experts one by one") {
  const int experts = 5, dims = 32, hidden = 40, tokens = 7;
  auto gate = normal({experts, hidden, dims}, mx::float32, 1), up = normal({experts, hidden, dims}, mx::float32, 2);
  auto down = normal({experts, dims, hidden}, mx::float32, 3);
  auto x = normal({tokens, dims}, mx::float32, 4), logits = normal({tokens, experts}, mx::float32, 5);
  for (bool mlx_ops : {false, true}) {
    MlxOps ops(mlx_ops);
    auto weights = weights_of({{"m.gate_proj.weight", gate}, {"m.up_proj.weight", up}, {"m.down_proj.weight", down}});
    SwitchGLU block(weights, "m", experts, dims, hidden);
    auto choice = choose_then_softmax(logits, 2);
    auto got = floats(block(x, choice));
    auto chosen = ints(choice.experts);
    auto shares = floats(choice.weights);
    for (int t = 0; t < tokens; t++) {
      CHECK(shares[2 * t] + shares[2 * t + 1] == doctest::Approx(1));
      auto one = mx::slice(x, {t, 0}, {t + 1, dims});
      auto sum = mx::zeros({1, dims});
      for (int c = 0; c < 2; c++) {
        auto part = [&](const mx::array& w, const mx::array& in) {
          return mx::matmul(in, mx::transpose(mx::take(w, chosen[2 * t + c], 0)));
        };
        auto h = part(gate, one) * mx::sigmoid(part(gate, one)) * part(up, one);
        sum = sum + part(down, h) * mx::array(shares[2 * t + c]);
      }
      auto wanted = floats(sum);
      for (int i = 0; i < dims; i++) {
        CHECK(got[t * dims + i] == doctest::Approx(wanted[i]).epsilon(1e-4).scale(100));
      }
    }
  }
}

TEST_CASE("moe: scores choose within the best groups, and a bias counts for the choice alone") {
  // Two groups of three: the second has the greatest sum of two, the first the greatest score.
  auto scores = mx::array({0.9f, 0.1f, 0.1f, 0.6f, 0.2f, 0.7f}, {1, 6});
  auto bias = mx::array({0.f, 0.f, 0.f, 0.f, 0.9f, 0.f}, {6});
  for (bool mlx_ops : {false, true}) {
    MlxOps ops(mlx_ops);
    auto plain = choose_by_score(scores, {}, {.choices = 2});
    CHECK(ints(plain.experts) == std::vector<int>{0, 5});
    CHECK(floats(plain.weights)[0] == doctest::Approx(0.9 / 1.6));
    auto grouped = choose_by_score(scores, {}, {.choices = 2, .groups = 2, .normalize = false, .scale = 2});
    CHECK(ints(grouped.experts) == std::vector<int>{5, 3});
    CHECK(floats(grouped.weights)[0] == doctest::Approx(1.4));
    auto biased = choose_by_score(scores, bias, {.choices = 2, .groups = 2, .normalize = false});
    CHECK(ints(biased.experts) == std::vector<int>{4, 5});
    CHECK(floats(biased.weights)[0] == doctest::Approx(0.2));
  }
}

TEST_CASE("moe: softmax before or after the choice") {
  auto logits = mx::array({2.f, 0.f, 1.f, -1.f}, {1, 4});
  double sum = std::exp(2) + 1 + std::exp(1) + std::exp(-1);
  for (bool mlx_ops : {false, true}) {
    MlxOps ops(mlx_ops);
    auto all = choose_by_softmax(logits, 2, false);
    CHECK(ints(all.experts) == std::vector<int>{0, 2});
    CHECK(floats(all.weights)[0] == doctest::Approx(std::exp(2) / sum));
    for (auto& two : {choose_by_softmax(logits, 2, true), choose_then_softmax(logits, 2)}) {
      CHECK(floats(two.weights)[0] == doctest::Approx(std::exp(2) / (std::exp(2) + std::exp(1))));
    }
  }
}

TEST_CASE("moe: a matrix a head") {
  auto w = normal({3, 10, 32}, mx::float32, 1), x = normal({5, 3, 32}, mx::float32, 2);
  for (bool mlx_ops : {false, true}) {
    MlxOps ops(mlx_ops);
    auto weights = weights_of({{"u.weight", w}});
    MultiLinear heads(weights, "u", 3, 10, 32);
    auto y = heads(x);
    CHECK(y.shape() == mx::Shape{5, 3, 10});
    for (int h = 0; h < 3; h++) {
      CHECK(worst_error(mx::take(y, h, 1), mx::take(x, h, 1), w, std::vector<int>(5, h), {}) < 1e-6);
    }
  }
}

TEST_CASE("moe: a token's result has the same bits alone and in a batch") {
  if (!on_cpu()) {
    return;
  }
  const int experts = 6, dims = 64, hidden = 96, tokens = 37;
  for (auto type : {mx::float32, mx::float16, mx::bfloat16}) {
    for (int bits : {0, 4, 8}) {
      std::unordered_map<std::string, mx::array> arrays;
      int seed = 0;
      for (auto& [name, shape] : std::vector<std::pair<std::string, mx::Shape>>{
               {"m.gate_proj", {experts, hidden, dims}},
               {"m.up_proj", {experts, hidden, dims}},
               {"m.down_proj", {experts, dims, hidden}}}) {
        auto w = normal(shape, mx::float32, ++seed);
        if (bits == 0) {
          arrays.emplace(name + ".weight", mx::astype(w, type));
          continue;
        }
        auto q = mx::quantize(w, 32, bits);
        arrays.emplace(name + ".weight", q[0]);
        arrays.emplace(name + ".scales", q[1]);
        arrays.emplace(name + ".biases", q[2]);
      }
      auto weights = weights_of(arrays, bits ? std::optional(Quantization{32, bits}) : std::nullopt, type);
      SwitchGLU block(weights, "m", experts, dims, hidden);
      auto x = normal({tokens, dims}, type, 8), logits = normal({tokens, experts}, type, 9);
      auto run = [&](int first, int count) {
        auto part = [&](const mx::array& a) { return mx::slice(a, {first, 0}, {first + count, a.shape(1)}); };
        return block(part(x), choose_then_softmax(part(logits), 3));
      };
      auto whole = run(0, tokens);
      for (int t : {0, 1, 17, tokens - 1}) {
        CHECK(floats(run(t, 1)) == row(whole, t));
      }
      auto piece = run(5, 9);
      for (int t = 0; t < 9; t++) {
        CHECK(row(piece, t) == row(whole, t + 5));
      }
    }
  }
}

TEST_CASE("moe: kernels refuse what doesn't fit; a row of no matrix becomes NaN") {
  auto x = normal({2, 32}, mx::float32, 1), w = normal({3, 8, 32}, mx::float32, 2);
  CHECK_THROWS_AS(cpu::grouped_matmul(x, w, int32s({0}, {1})), std::invalid_argument);
  CHECK_THROWS_AS(
      cpu::grouped_matmul(x, normal({3, 8, 16}, mx::float32, 2), int32s({0, 1}, {2})), std::invalid_argument);
  CHECK_THROWS_AS(cpu::grouped_matmul(x, w, int32s({0, 1}, {2}), normal({8}, mx::float32, 3)), std::invalid_argument);
  CHECK_THROWS_AS(cpu::weighted_sum(x, int32s({0, 1}, {2}), normal({1, 3}, mx::float32, 3)), std::invalid_argument);
  auto y = floats(cpu::grouped_matmul(x, w, int32s({1, 3}, {2})));
  CHECK(std::isfinite(y[7]));
  CHECK(std::isnan(y[8]));
  CHECK(std::isnan(y[15]));
}

TEST_CASE("moe: checkpoints' layouts of experts become ours") {
  std::unordered_map<std::string, mx::array> arrays;
  for (int e = 0; e < 2; e++) {
    for (auto name : {"w1", "w2", "w3"}) {
      arrays.emplace(fmt::format("b.experts.{}.{}.weight", e, name), mx::full({2, 2}, 10.f * e + (name[1] - '0')));
    }
  }
  arrays.emplace("f", mx::reshape(mx::arange(0.f, 12.f, 1.f), {1, 2, 6}));
  arrays.emplace("d", mx::reshape(mx::arange(0.f, 6.f, 1.f), {1, 2, 3}));
  auto weights = weights_of(arrays);
  stack_experts(weights, "b.experts", "b.switch_mlp", 2, numbered_projections);
  split_gate_up(weights, "f", "g", true);
  transpose_experts(weights, "d", "g.down_proj");
  CHECK(
      floats(weights.take("b.switch_mlp.down_proj.weight", {2, 2, 2})) ==
      std::vector<float>{2, 2, 2, 2, 12, 12, 12, 12});
  CHECK(floats(weights.take("b.switch_mlp.up_proj.weight", {2, 2, 2}))[0] == 3);
  CHECK(floats(weights.take("b.switch_mlp.gate_proj.weight", {2, 2, 2}))[0] == 1);
  CHECK(floats(weights.take("g.gate_proj.weight", {1, 3, 2})) == std::vector<float>{0, 6, 1, 7, 2, 8});
  CHECK(floats(weights.take("g.up_proj.weight", {1, 3, 2})) == std::vector<float>{3, 9, 4, 10, 5, 11});
  CHECK(floats(weights.take("g.down_proj.weight", {1, 3, 2})) == std::vector<float>{0, 3, 1, 4, 2, 5});
  weights.finish();
}

} // namespace parallm::test
