#include "engine/speculation.h"

#include <doctest/doctest.h>

#include <cmath>

using namespace parallm;

TEST_CASE("the longest earlier match of the end says what may follow, the latest of equals") {
  const auto guesses = [](std::vector<int32_t> tokens, int most) { return look_up(tokens, most).guesses; };
  using Ids = std::vector<int32_t>;
  CHECK(guesses({1, 2, 3, 4, 1, 2}, 2) == Ids{3, 4});
  CHECK(guesses({1, 2, 3, 1, 2, 5, 1, 2}, 1) == Ids{5}); // the latest
  CHECK(guesses({9, 1, 2, 3, 1, 2, 5, 9, 1, 2}, 1) == Ids{3}); // the longest
  CHECK(look_up(Ids{9, 1, 2, 3, 9, 1, 2}, 1).matched == 3);
  CHECK(guesses({1, 2, 3, 2}, 2).empty()); // one token is no match
  CHECK(guesses({1, 2}, 2).empty());
  CHECK(guesses({}, 2).empty());
  CHECK(guesses({1, 2, 1, 2}, 0).empty());
  // What repeats itself goes on.
  CHECK(guesses({7, 1, 2, 1, 2}, 5) == Ids{1, 2, 1, 2, 1});
  CHECK(guesses({4, 4, 4}, 3) == Ids{4, 4, 4});
  CHECK(look_up(Ids(40, 4), 3).matched == longest_match);
}

TEST_CASE("the cost of a step is learned from unlike steps") {
  StepCost cost;
  for (int i = 0; i < 300; ++i) {
    const int tokens = 1 + i % 7, passes = i % 3;
    const bool waited = i % 5 > 1;
    cost.learn({tokens, passes, waited}, 4e-3 + 0.8e-3 * tokens + 0.5e-3 * passes + 1e-3 * waited);
  }
  CHECK(cost.of({1}) == doctest::Approx(4.8e-3).epsilon(0.02));
  CHECK(cost.of({32}) == doctest::Approx(29.6e-3).epsilon(0.02));
  CHECK(cost.of({5, 4, true}) == doctest::Approx(11e-3).epsilon(0.02));
  cost.learn({1}, 60); // a compiler ran
  CHECK(cost.of({1}) < 10e-3);
  // Of one kind of step alone the rest is an assumption, but a finite one.
  StepCost narrow;
  for (int i = 0; i < 1000; ++i) {
    narrow.learn({8}, 1e-2);
  }
  CHECK(narrow.of({8}) == doctest::Approx(1e-2).epsilon(0.01));
  CHECK(narrow.of({9}) > 1e-2);
  CHECK(narrow.of({9}) < 1.2e-2);
}

TEST_CASE("guesses are made where they pay") {
  StepCost cost; // 4.4 ms for a token, 0.6 for each more: SmolLM2 on two cores
  for (int i = 0; i < 300; ++i) {
    const int tokens = 1 + i % 32;
    cost.learn({tokens}, 3.8e-3 + 0.6e-3 * tokens);
  }
  const auto best = [&](int rows, double confidence) {
    return best_guesses({rows}, std::vector<Prospect>(rows, {8, confidence}), false, cost);
  };
  CHECK(best(1, 0.1) == 0);
  CHECK(best(1, 0.5) >= 1);
  CHECK(best(1, 0.95) == 8);
  CHECK(best(32, 0.5) == 0); // a full batch has no room for what may be wrong
  CHECK(best(32, 0.8) == 0);
  CHECK(best(1, 0.5) <= best(1, 0.8));
  CHECK(best_guesses({0}, {}, false, cost) == 0);
}

TEST_CASE("confidence follows what was right, and counts no guess after a wrong one") {
  Confidence confidence;
  for (int i = 0; i < 200; ++i) {
    confidence.learn(3, 4, 0); // the first was wrong
    confidence.learn(5, 4, 4);
    confidence.learn(6, 4, 1); // one right, then one wrong
  }
  CHECK(confidence.of(3) < 0.05);
  CHECK(confidence.of(5) > 0.95);
  CHECK(confidence.of(6) == doctest::Approx(0.5).epsilon(0.1));
}
