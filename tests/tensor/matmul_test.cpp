// The CPU matmuls against float64 sums, and the promise that rows are
// independent bit for bit.
#include "each_target.h"

#include "kernels/cpu/ops.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <vector>

namespace mx = mlx::core;
using namespace parallm;
using test::for_each_target;

namespace {

mx::array normal(const mx::Shape& shape, mx::Dtype type, int seed) {
  return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), type);
}

std::vector<float> floats(const mx::array& a) {
  auto f = mx::contiguous(mx::astype(a, mx::float32));
  mx::eval(f);
  return {f.data<float>(), f.data<float>() + f.size()};
}

/** The greatest difference from the float64 product, relative to the sum of the
 * terms' magnitudes. */
double
worst_error(const mx::array& y, const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias = {}) {
  const int m = x.shape(0), k = x.shape(1), n = w.shape(0);
  const auto ys = floats(y), xs = floats(x), ws = floats(w);
  const auto bs = bias ? floats(*bias) : std::vector<float>(n);
  REQUIRE(ys.size() == static_cast<size_t>(m) * n);
  double worst = 0;
  for (int i = 0; i < m; i++) {
    for (int j = 0; j < n; j++) {
      double sum = bs[j], size = std::abs(bs[j]) + 1e-30;
      for (int l = 0; l < k; l++) {
        const double term = double(xs[i * k + l]) * ws[j * k + l];
        sum += term;
        size += std::abs(term);
      }
      worst = std::max(worst, std::abs(ys[i * n + j] - sum) / size);
    }
  }
  return worst;
}

double tolerance(mx::Dtype out) {
  return out == mx::float32 ? 1e-6 : out == mx::float16 ? 1e-3 : 8e-3;
}

// Where w is in affine codes x is rounded to 16-bit ones.
constexpr double codes_tolerance = 1.5e-5;

const std::vector<mx::Dtype> types{mx::float32, mx::float16, mx::bfloat16};

bool same_bits(const mx::array& a, const mx::array& b) {
  const auto u = floats(a), v = floats(b);
  return u.size() == v.size() && std::memcmp(u.data(), v.data(), u.size() * sizeof(float)) == 0;
}

/** matmul(x) equals, row by row and in pieces, what it gives for all rows at
 * once. */
template <class F>
void check_rows_independent(const mx::array& x, const F& product) {
  const int rows = x.shape(0), k = x.shape(1);
  cpu::set_threads(2);
  const auto whole = product(x);
  mx::eval(whole);
  for (int count : {1, 2, 3, 4, 5, 7, 8, 9, 33}) {
    for (int threads : {1, 3}) {
      cpu::set_threads(threads);
      for (int first : {0, 5, rows - count}) {
        const auto part = product(mx::slice(x, {first, 0}, {first + count, k}));
        CHECK(same_bits(part, mx::slice(whole, {first, 0}, {first + count, whole.shape(1)})));
      }
    }
  }
  cpu::set_threads(2);
}

mx::array random_bytes(const mx::Shape& shape, int low, int high, int seed) {
  return mx::astype(mx::random::randint(low, high, shape, mx::int32, mx::random::key(seed)), mx::uint8);
}

void check_quantized_matmul() {
  for (int bits : {2, 3, 4, 5, 6, 8}) {
    for (int group : {32, 64, 128}) {
      for (auto type : types) {
        for (int m : {1, 8, 19}) {
          const int k = m == 8 ? 1408 : 384, n = 45;
          const auto x = normal({m, k}, mx::float32, 1);
          const auto q = mx::quantize(normal({n, k}, mx::float32, 2), group, bits, "affine");
          const auto scales = mx::astype(q[1], type);
          const auto biases = mx::astype(q[2], type);
          const auto w = mx::dequantize(
              q[0], mx::astype(scales, mx::float32), mx::astype(biases, mx::float32), group, bits, "affine");
          INFO("bits ", bits, " group ", group, " rows ", m);
          const auto y = cpu::quantized_matmul(x, q[0], scales, biases, group, bits);
          CHECK(worst_error(y, x, w) < codes_tolerance);
          const auto half = mx::astype(x, type);
          const auto bias = normal({n}, type, 3);
          CHECK(
              worst_error(cpu::quantized_matmul(half, q[0], scales, biases, group, bits, bias), half, w, bias) <
              std::max(tolerance(type), codes_tolerance));
        }
      }
    }
  }
}

} // namespace

TEST_CASE("dense matmul equals a float64 sum, for all types and odd shapes") {
  const std::vector<std::vector<int>> shapes{
      {1, 576, 40}, {3, 77, 13}, {8, 1, 1}, {9, 2500, 37}, {33, 64, 70}, {5, 1029, 9}};
  for (const auto& s : shapes) {
    for (auto x_type : types) {
      for (auto w_type : types) {
        const auto x = normal({s[0], s[1]}, x_type, 1);
        const auto w = normal({s[2], s[1]}, w_type, 2);
        const auto bias = normal({s[2]}, w_type, 3);
        INFO("M ", s[0], " K ", s[1], " N ", s[2]);
        const auto y = cpu::matmul(x, w);
        CHECK(y.dtype() == x_type);
        CHECK(worst_error(y, x, w) < tolerance(x_type));
        CHECK(worst_error(cpu::matmul(x, w, bias), x, w, bias) < tolerance(x_type));
      }
    }
  }
}

TEST_CASE("quantized matmul equals a float64 sum of MLX's dequantized weights") {
  for_each_target([&] { check_quantized_matmul(); });
}

TEST_CASE("quantized matmul takes groups of 16, whatever their number") {
  for_each_target([&] {
    for (int bits : {2, 4, 8}) {
      for (int k : {16, 48, 2064}) {
        for (int m : {1, 3, 9}) {
          const int n = 21, groups = k / 16;
          const auto x = normal({m, k}, mx::float32, 1);
          const auto codes = mx::view(random_bytes({n, k * bits / 8}, 0, 256, 2), mx::uint32);
          const auto scales = mx::astype(normal({n, groups}, mx::float32, 3), mx::bfloat16);
          const auto biases = mx::astype(normal({n, groups}, mx::float32, 4), mx::bfloat16);
          auto ints = mx::right_shift(
              mx::expand_dims(codes, 2), mx::arange(0, 32, bits, mx::uint32)); // [N, words, codes of a word]
          ints = mx::reshape(mx::bitwise_and(ints, mx::array((1u << bits) - 1, mx::uint32)), {n, groups, 16});
          const auto wide = [](const mx::array& a) { return mx::expand_dims(mx::astype(a, mx::float32), 2); };
          const auto w = mx::reshape(mx::astype(ints, mx::float32) * wide(scales) + wide(biases), {n, k});
          INFO("bits ", bits, " K ", k, " rows ", m);
          CHECK(
              worst_error(cpu::quantized_matmul(x, codes, scales, biases, 16, bits), x, w) <
              4 * codes_tolerance); // few terms
        }
      }
    }
  });
}

TEST_CASE("matmuls that take in a norm, a gate and a sum give what the single ops give") {
  const int m = 11, k = 96, n = 40;
  for (auto type : types) {
    const auto x = normal({m, k}, type, 1), norm = normal({k}, type, 2), sum = normal({m, n}, type, 3);
    const auto dense = [&](int seed) {
      return cpu::Operand{.w = normal({n, k}, type, seed), .bias = normal({n}, type, seed)};
    };
    const auto coded = [&](int seed) {
      const auto q = mx::quantize(normal({n, k}, mx::float32, seed), 32, 4, "affine");
      return cpu::Operand{
          .w = q[0], .scales = mx::astype(q[1], type), .biases = mx::astype(q[2], type), .group_size = 32, .bits = 4};
    };
    for (bool codes : {false, true}) {
      const auto a = codes ? coded(5) : dense(5), b = codes ? coded(6) : dense(6);
      const auto normed = cpu::rms_norm(x, norm, 1e-5f);
      auto apart = cpu::rms_norm(x, norm, 1e-5f);
      mx::eval(apart); // is no node any more
      CHECK(same_bits(cpu::matmul(normed, a), cpu::matmul(apart, a)));
      const auto both = cpu::matmuls(normed, {a, b}, {{m, n}, {m, 8, 5}});
      CHECK(both[1].shape() == mx::Shape{m, 8, 5});
      CHECK(same_bits(both[0], cpu::matmul(apart, a)));
      CHECK(same_bits(mx::reshape(both[1], {m, n}), cpu::matmul(apart, b)));
      auto gate = cpu::matmul(apart, a), up = cpu::matmul(apart, b);
      const auto fused = floats(cpu::swiglu(cpu::matmul(apart, a), cpu::matmul(apart, b)));
      const auto added = floats(cpu::add(sum, cpu::matmul(apart, a)));
      mx::eval(gate, up);
      const auto single = floats(cpu::swiglu(gate, up)), plain = floats(mx::add(sum, gate));
      for (size_t i = 0; i < fused.size(); i++) { // rounded once, not twice
        CHECK(std::abs(fused[i] - single[i]) <= 4 * tolerance(type) * (1 + std::abs(single[i])));
        CHECK(
            std::abs(added[i] - plain[i]) <=
            4 * tolerance(type) * (1 + std::abs(plain[i]) + std::abs(floats(gate)[i])));
      }
    }
  }
}

TEST_CASE("quantized matmul keeps any float's size, and a row that holds no number is no number alone") {
  const int k = 160, n = 7;
  const auto q = mx::quantize(normal({n, k}, mx::float32, 2), 32, 4, "affine");
  const auto w = mx::dequantize(q[0], q[1], q[2], 32, 4, "affine");
  const auto product = [&](const mx::array& x) { return cpu::quantized_matmul(x, q[0], q[1], q[2], 32, 4); };
  const auto x = normal({5, k}, mx::float32, 1);
  for (float size : {1e-20f, 1e-5f, 1e5f, 1e30f}) {
    const auto sized = x * mx::array(size);
    CHECK(worst_error(product(sized), sized, w) < codes_tolerance);
  }
  CHECK(floats(product(mx::zeros({1, k}))) == std::vector<float>(n, 0.0f));
  const auto whole = product(x);
  for (float odd : {NAN, INFINITY, -INFINITY}) {
    auto wrong = floats(x);
    wrong[2 * k + 70] = odd;
    const auto ys = floats(product(mx::array(wrong.data(), {5, k})));
    const auto right = floats(whole);
    for (int i = 0; i < 5 * n; i++) {
      CHECK((i / n == 2 ? std::isnan(ys[i]) : ys[i] == right[i]));
    }
  }
}

TEST_CASE("a matmul's rows are independent, bit for bit") {
  for (int k : {576, 2560, 1029}) {
    const auto x = normal({40, k}, mx::float32, 1);
    for (auto type : types) {
      const auto w = normal({50, k}, type, 2);
      check_rows_independent(x, [&](const mx::array& rows) { return cpu::matmul(rows, w); });
    }
    if (k % 32 != 0) {
      continue;
    }
    for (int bits : {2, 3, 4, 5, 6, 8}) {
      const auto q = mx::quantize(normal({50, k}, mx::float32, 2), 32, bits, "affine");
      check_rows_independent(
          x, [&](const mx::array& rows) { return cpu::quantized_matmul(rows, q[0], q[1], q[2], 32, bits); });
    }
  }
}

TEST_CASE("quantized matmul gives few rows the bits that they have among many, on each target") {
  for_each_target([] {
    for (int bits : {2, 3, 4, 8}) {
      for (int group : {32, 64, 128}) {
        const int k = 1408 + 128 * 9, n = 37; // a stretch of K and a part of one; columns past whole vectors
        const auto x = normal({9, k}, mx::float32, 1);
        const auto q = mx::quantize(normal({n, k}, mx::float32, 2), group, bits, "affine");
        const auto product = [&](const mx::array& rows) {
          return cpu::quantized_matmul(rows, q[0], q[1], q[2], group, bits);
        };
        const auto whole = product(x);
        for (int count : {1, 2, 3, 4}) {
          INFO("bits ", bits, " group ", group, " rows ", count);
          const auto few = product(mx::slice(x, {4, 0}, {4 + count, k}));
          CHECK(same_bits(few, mx::slice(whole, {4, 0}, {4 + count, n})));
        }
      }
    }
  });
}

TEST_CASE("a matmul takes strided inputs, empty batches and refuses wrong ones") {
  const auto wide = normal({30, 64}, mx::float32, 1);
  const auto w = normal({12, 30}, mx::float32, 2);
  const auto x = mx::transpose(wide); // [64,30], strided
  CHECK(worst_error(cpu::matmul(x, w), x, w) < 1e-6);
  const auto none = cpu::matmul(mx::zeros({0, 30}), w);
  mx::eval(none);
  CHECK(none.shape() == mx::Shape{0, 12});
  CHECK_THROWS_AS(cpu::matmul(wide, w), std::invalid_argument);
  CHECK_THROWS_AS(cpu::matmul(x, mx::astype(w, mx::int32)), std::invalid_argument);
  const auto q = mx::quantize(normal({8, 64}, mx::float32, 2), 32, 4, "affine");
  CHECK_THROWS_AS(cpu::quantized_matmul(wide, q[0], q[1], q[2], 32, 7), std::invalid_argument);
  CHECK_THROWS_AS(cpu::quantized_matmul(wide, q[0], q[1], q[2], 64, 4), std::invalid_argument);
}

namespace {

struct SmallFloats {
  const char* mode;
  int group;
  int bits;
};

const std::vector<SmallFloats> small_floats{{"mxfp4", 32, 4}, {"nvfp4", 16, 4}, {"mxfp8", 32, 8}};

} // namespace

TEST_CASE("small floats: each weight is exactly what mx::dequantize makes of it") {
  for_each_target([&] {
    for (const auto& how : small_floats) {
      CAPTURE(how.mode);
      const int n = 40, k = 64;
      // Every byte is a code, so all of them come up, and scales of all sizes but infinity and no number.
      const auto w = mx::view(random_bytes({n, k * how.bits / 8}, 0, 256, 1), mx::uint32);
      const auto scales = random_bytes({n, k / how.group}, 0, how.group == 16 ? 127 : 230, 2);
      const auto wanted = mx::dequantize(w, scales, {}, how.group, how.bits, how.mode, {}, mx::float32);
      for (int rows : {1, k}) { // widened in registers, and once for all rows
        const auto x = rows == k ? mx::eye(k) : mx::slice(mx::eye(k), {5, 0}, {6, k});
        const auto got = floats(cpu::quantized_matmul(x, w, scales, {}, how.group, how.bits, {}, how.mode));
        const auto columns =
            floats(rows == k ? mx::transpose(wanted) : mx::slice(mx::transpose(wanted), {5, 0}, {6, n}));
        REQUIRE(got.size() == columns.size());
        for (size_t i = 0; i < got.size(); i++) {
          // A row with a code that is no number makes all its sums none.
          if (!std::isnan(got[i])) {
            REQUIRE(got[i] == columns[i]);
          }
        }
        const bool some = std::any_of(got.begin(), got.end(), [](float v) { return !std::isnan(v); });
        CHECK(some);
      }
    }
  });
}

TEST_CASE("small floats: a matmul equals a float64 sum of MLX's dequantized weights") {
  for_each_target([&] {
    for (const auto& how : small_floats) {
      for (auto type : types) {
        for (const auto& [m, k, n] :
             {std::tuple{1, 384, 45}, {2, 32, 1}, {8, 1408, 9}, {19, 1056, 33}, {5, 2080, 70}}) {
          CAPTURE(how.mode);
          CAPTURE(k);
          const auto x = normal({m, k}, type, 1);
          const auto q = mx::quantize(normal({n, k}, mx::float32, 2), how.group, how.bits, how.mode);
          REQUIRE(q.size() == 2);
          const auto w = mx::dequantize(q[0], q[1], {}, how.group, how.bits, how.mode, {}, mx::float32);
          const auto bias = normal({n}, type, 3);
          const auto y = cpu::quantized_matmul(x, q[0], q[1], {}, how.group, how.bits, {}, how.mode);
          CHECK(y.dtype() == type);
          CHECK(worst_error(y, x, w) < tolerance(type));
          const auto z = cpu::quantized_matmul(x, q[0], q[1], {}, how.group, how.bits, bias, how.mode);
          CHECK(worst_error(z, x, w, bias) < tolerance(type));
        }
      }
    }
  });
}

TEST_CASE("small floats: a matmul's rows are independent, bit for bit") {
  for (const auto& how : small_floats) {
    for (int k : {576, 2560}) {
      const auto x = normal({40, k}, mx::float32, 1);
      const auto q = mx::quantize(normal({50, k}, mx::float32, 2), how.group, how.bits, how.mode);
      check_rows_independent(x, [&](const mx::array& rows) {
        return cpu::quantized_matmul(rows, q[0], q[1], {}, how.group, how.bits, {}, how.mode);
      });
    }
  }
}

TEST_CASE("small floats: grouped rows are what each has alone with its own matrix") {
  const int groups = 3, k = 96, n = 21;
  const std::vector<int> which{0, 0, 2, 2, 2};
  const auto x = normal({5, k}, mx::float32, 1);
  for (const auto& how : small_floats) {
    CAPTURE(how.mode);
    const auto q = mx::quantize(normal({groups, n, k}, mx::float32, 2), how.group, how.bits, how.mode);
    const auto bias = normal({groups, n}, mx::float32, 3);
    const mx::array ids(which.data(), {5}, mx::int32);
    const auto all = cpu::grouped_quantized_matmul(x, q[0], q[1], {}, how.group, how.bits, ids, bias, how.mode);
    for (int i = 0; i < 5; i++) {
      const auto own = [&](const mx::array& a) { return mx::take(a, which[i], 0); };
      const auto row = mx::slice(x, {i, 0}, {i + 1, k});
      const auto alone = cpu::quantized_matmul(row, own(q[0]), own(q[1]), {}, how.group, how.bits, own(bias), how.mode);
      CHECK(same_bits(alone, mx::slice(all, {i, 0}, {i + 1, n})));
    }
  }
}

TEST_CASE("small floats: a code that is no number stays none, and wrong operands are refused") {
  const auto q = mx::quantize(normal({8, 64}, mx::float32, 2), 32, 8, "mxfp8");
  const auto x = normal({2, 64}, mx::float32, 1);
  const auto nan = mx::view(mx::full({8, 64}, 0x7F, mx::uint8), mx::uint32);
  for (float v : floats(cpu::quantized_matmul(x, nan, q[1], {}, 32, 8, {}, "mxfp8"))) {
    CHECK(std::isnan(v));
  }
  CHECK_THROWS_AS(cpu::quantized_matmul(x, q[0], q[1], {}, 64, 8, {}, "mxfp8"), std::invalid_argument);
  CHECK_THROWS_AS(cpu::quantized_matmul(x, q[0], q[1], q[1], 32, 8, {}, "mxfp8"), std::invalid_argument);
  CHECK_THROWS_AS(cpu::quantized_matmul(x, q[0], q[1], {}, 32, 8, {}, "affine"), std::invalid_argument);
  CHECK_THROWS_AS(cpu::quantized_matmul(x, q[0], q[1], {}, 32, 8, {}, "fp8"), std::invalid_argument);
}
