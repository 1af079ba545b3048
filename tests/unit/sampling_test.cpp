#include "engine/sampling.h"

#include <doctest/doctest.h>

#include <set>

using namespace parallm;

TEST_CASE("draw is Philox4x32-10's first word, its high 24 bits") {
  // Random123's kat_vectors: counter 0, key 0 gives 6627e8d5 e169c58d ...
  CHECK(draw(0, 0) == static_cast<float>(0x6627e8d5u >> 8) * 0x1p-24f);
}

TEST_CASE("draw is uniform over indices and over seeds") {
  for (bool seeds : {false, true}) {
    constexpr int n = 100000, bins = 20;
    int count[bins] = {};
    for (uint64_t i = 0; i < n; ++i) {
      const float u = seeds ? draw(i, 3) : draw(3, i);
      REQUIRE(u >= 0);
      REQUIRE(u < 1);
      ++count[static_cast<int>(u * bins)];
    }
    double chi2 = 0;
    for (int c : count) {
      const double off = c - double(n) / bins;
      chi2 += off * off / (double(n) / bins);
    }
    CHECK(chi2 < 50); // 19 degrees of freedom: passed by chance 0.9999 times
  }
}

TEST_CASE("high halves of seed and index count") {
  const uint64_t high = uint64_t{1} << 32;
  CHECK(std::set<float>{draw(1, 1), draw(1 + high, 1), draw(1, 1 + high)}.size() == 3);
}
