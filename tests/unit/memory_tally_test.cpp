#include "engine/memory_tally.h"

#include <doctest/doctest.h>

using namespace parallm;

TEST_CASE("memory tally: sums of tokens' uses, memories in order") {
  MemoryTally tally;
  tally.add({1, 0.5f, {{2, 0.25f, -0.5f, 3}, {7, 0.25f, 0.125f, 1}}});
  tally.add({1, 0, {}});
  tally.add({1, 0.25f, {{0, 0.125f, 0.5f, 1}, {2, 0.125f, -0.75f, 2}}});
  const MemoryUse use = tally.take();
  CHECK(use.queries == 3);
  CHECK(use.mass == 0.75f);
  REQUIRE(use.memories.size() == 3);
  CHECK(use.memories[0].memory == 0);
  CHECK(use.memories[1].memory == 2);
  CHECK(use.memories[1].mass == 0.375f);
  CHECK(use.memories[1].cosine == -0.5f);
  CHECK(use.memories[1].count == 5);
  CHECK(use.memories[2].memory == 7);
  CHECK(tally.take().queries == 0);
  CHECK(tally.take().memories.empty());
}

TEST_CASE("memory tally: the most used, alone or above a background") {
  const MemoryUse use{1, 1, {{0, 0.5f, 0, 1}, {1, 0.25f, 0, 1}, {2, 0.125f, 0, 1}, {3, 0.125f, 0, 1}}};
  const auto places = [](const MemoryUse& found) {
    std::vector<int32_t> out;
    for (auto& used : found.memories) {
      out.push_back(used.memory);
    }
    return out;
  };
  CHECK(places(most_used(use, 3)) == std::vector<int32_t>{0, 1, 2});
  CHECK(places(most_used(use, 9)) == std::vector<int32_t>{0, 1, 2, 3});
  CHECK(places(most_used(use, 0)).empty());
  const std::vector<float> background{0.25f, 0.125f, 0.05f}; // of another length: what it doesn't say is 0
  const auto above = most_used(use, 3, &background);
  CHECK(places(above) == std::vector<int32_t>{3, 2, 0});
  CHECK(above.memories[0].mass == 0.125f); // its own
  CHECK(above.mass == 1);
  MemoryUse twice = use;
  twice.queries = 2; // sums of two queries
  CHECK(places(most_used(twice, 1, &background)) == std::vector<int32_t>{3});
}

TEST_CASE("memory tally: an answer's tokens, each with what it used most") {
  MemoryTally tally;
  tally.add({1, 0.5f, {{3, 0.2f, 0.1f, 1}}});
  tally.add({1, 0.25f, {{1, 0.1f, 0.3f, 2}, {3, 0.1f, 0.4f, 1}}});
  const MemoryUse sum = tally.take();
  CHECK(sum.queries == 2);
  CHECK(sum.mass == doctest::Approx(0.75));
  REQUIRE(sum.memories.size() == 2);
  CHECK(sum.memories[0].memory == 1);
  CHECK(sum.memories[1].mass == doctest::Approx(0.3));
  CHECK(sum.memories[1].cosine == doctest::Approx(0.4));
  CHECK(sum.memories[1].count == 2);
  CHECK(MemoryTally().take().queries == 0);
}
