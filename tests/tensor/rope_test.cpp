// Rope against the formulas written out once more in doubles, and against MLX's
// own fused rope.
#include "models/rope_scaling.h"

#include "base/error.h"

#include <boost/json/parse.hpp>
#include <doctest/doctest.h>
#include <fmt/format.h>
#include <mlx/mlx.h>

#include <cmath>
#include <numeric>

namespace parallm::test {

namespace {

Rope rope_of(const char* json, int head_dim) {
  return make_rope({boost::json::parse(json).get_object(), "config.json"}, head_dim);
}

} // namespace

TEST_CASE("rope: rotate equals MLX's rope, both pairings, a part of the head") {
  for (bool traditional : {false, true}) {
    for (int dims : {8, 16}) {
      Rope rope = rope_of("{}", dims);
      rope.traditional = traditional;
      auto x = mx::random::normal({6, 3, 16});
      std::vector<int> positions(6);
      std::iota(positions.begin(), positions.end(), 11);
      auto [cos, sin] = rope.tables(positions, std::vector<int>(6, 0));
      auto wanted = mx::fast::rope(mx::expand_dims(mx::swapaxes(x, 0, 1), 0), dims, traditional, 10000.0f, 1.0f, 11);
      auto got = mx::expand_dims(mx::swapaxes(rope.rotate(x, cos, sin), 0, 1), 0);
      CHECK(mx::allclose(got, wanted, 1e-5, 1e-5).item<bool>());
    }
  }
}

TEST_CASE("rope: dynamic grows its base with the sequence's own length") {
  auto rope = rope_of(
      R"({"rope_scaling": {"type": "dynamic", "factor": 2.0},
          "max_position_embeddings": 10})",
      8);
  auto [cos, sin] = rope.tables({7, 7, 7}, {0, 10, 30});
  mx::eval(cos);
  auto* c = cos.data<float>();
  double base = 10000 * std::pow(2.0 * 30 / 10 - 1, 8.0 / 6);
  for (int i = 0; i < 4; ++i) {
    CHECK(c[i] == doctest::Approx(std::cos(7 * std::pow(10000, -i / 4.0))));
    CHECK(c[4 + i] == c[i]);
    CHECK(c[8 + i] == doctest::Approx(std::cos(7 * std::pow(base, -i / 4.0))));
  }
}

TEST_CASE("rope: yarn's options act") {
  auto magnitude = [](const char* more) {
    return rope_of(
               fmt::format(
                   R"({{"rope_scaling": {{"rope_type": "yarn", "factor": 4.0,
                   "original_max_position_embeddings": 64{}}}}})",
                   more)
                   .c_str(),
               32)
        .magnitude;
  };
  CHECK(magnitude("") == doctest::Approx(0.1 * std::log(4.0) + 1));
  CHECK(magnitude(R"(, "attention_factor": 1.5)") == 1.5f);
  CHECK(
      magnitude(R"(, "mscale": 2.0, "mscale_all_dim": 0.5)") ==
      doctest::Approx((0.2 * std::log(4.0) + 1) / (0.05 * std::log(4.0) + 1)));
  auto cut = rope_of(
      R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0,
          "original_max_position_embeddings": 64}})",
      32);
  auto exact = rope_of(
      R"({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": false,
          "original_max_position_embeddings": 64}})",
      32);
  CHECK(cut.inverse_frequencies != exact.inverse_frequencies);
}

TEST_CASE("rope: rope_parameters holds theta too; factors divide") {
  auto rope = rope_of(R"({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}})", 4);
  CHECK(rope.inverse_frequencies[1] == doctest::Approx(1 / std::sqrt(500.0)));
  rope = rope_of(
      R"({"rope_scaling": {"rope_type": "frequency_factors",
          "factors": [1.0, 4.0]}})",
      4);
  CHECK(rope.inverse_frequencies[1] == doctest::Approx(0.0025));
  CHECK_THROWS_AS(rope_of(R"({"rope_scaling": {"type": "su"}})", 4), Error);
}

} // namespace parallm::test
