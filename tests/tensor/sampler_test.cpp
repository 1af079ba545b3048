#include "engine/sampler.h"
#include "nn/pick.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

using namespace parallm;

namespace {

struct Row {
  std::vector<float> logits;
  float temperature = 1, top_p = 1, min_p = 0, draw = 0;
  int top_k = 0;
};

/** The contract of nn/pick.h in plain words and doubles: which tokens stay, and
 * with what probability. */
std::map<int, double> kept(const Row& row) {
  const int V = static_cast<int>(row.logits.size());
  std::vector<double> l(row.logits.begin(), row.logits.end());
  for (double& x : l) {
    x /= row.temperature;
  }
  const double top = *std::max_element(l.begin(), l.end());
  std::vector<int> order(V);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return l[a] > l[b]; });
  const int k = row.top_k > 0 ? std::min(row.top_k, V) : V;
  const double kth = l[order[k - 1]];
  std::vector<int> left;
  double total = 0;
  for (int id : order) {
    if (l[id] >= kth && std::exp(l[id] - top) >= row.min_p && std::isfinite(l[id])) {
      left.push_back(id);
      total += std::exp(l[id] - top);
    }
  }
  double sum = 0, border = top;
  for (int id : left) {
    if (sum < row.top_p * total) {
      border = l[id];
    }
    sum += std::exp(l[id] - top);
  }
  std::map<int, double> p;
  total = 0;
  for (int id : left) {
    if (l[id] >= border) {
      total += std::exp(l[id] - top);
    }
  }
  for (int id : left) {
    if (l[id] >= border) {
      p[id] = std::exp(l[id] - top) / total;
    }
  }
  return p;
}

/** The token where the running sum first exceeds the draw, and whether rounding
 * could decide it otherwise. */
std::pair<int, bool> expected(const Row& row) {
  if (row.temperature == 0) {
    return {static_cast<int>(std::max_element(row.logits.begin(), row.logits.end()) - row.logits.begin()), true};
  }
  double sum = 0;
  int token = -1;
  bool sure = true;
  for (auto [id, p] : kept(row)) {
    sum += p;
    sure = sure && std::abs(sum - row.draw) > 1e-5;
    if (token < 0 && sum > row.draw) {
      token = id;
    }
  }
  return {token, sure};
}

template <typename T>
mx::array column(const std::vector<T>& v) {
  return mx::array(v.data(), {static_cast<int>(v.size())});
}

template <typename Pick>
std::vector<int> run(const std::vector<Row>& rows, Pick&& pick) {
  std::vector<float> logits, t, p, m, u;
  std::vector<int32_t> k;
  for (const Row& row : rows) {
    logits.insert(logits.end(), row.logits.begin(), row.logits.end());
    t.push_back(row.temperature);
    p.push_back(row.top_p);
    m.push_back(row.min_p);
    u.push_back(row.draw);
    k.push_back(row.top_k);
  }
  const int R = static_cast<int>(rows.size());
  auto tokens = pick(
      mx::array(logits.data(), {R, static_cast<int>(rows[0].logits.size())}),
      PickValues{column(t), column(k), column(p), column(m), column(u)});
  mx::eval(tokens);
  REQUIRE(tokens.dtype() == mx::int32);
  return {tokens.template data<int32_t>(), tokens.template data<int32_t>() + R};
}

template <typename F>
void both(F&& f) {
  SUBCASE("kernel") {
    f(&pick);
  }
  SUBCASE("sorting") {
    f(&pick_by_sorting);
  }
}

std::vector<float> log_of(const std::vector<double>& p) {
  std::vector<float> l;
  for (double x : p) {
    l.push_back(static_cast<float>(std::log(x)));
  }
  return l;
}

Plan plan_of(std::vector<RowStep> rows) {
  Plan plan;
  plan.rows = std::move(rows);
  return plan;
}

std::vector<int32_t> ints(const mx::array& a) {
  mx::eval(a);
  return {a.data<int32_t>(), a.data<int32_t>() + a.size()};
}

std::vector<float> floats(mx::array a) {
  mx::eval(a);
  return {a.data<float>(), a.data<float>() + a.size()};
}

/** One greedy step of one row, over the given logits. */
int32_t greedy(Sampler& sampler, std::vector<float> logits, RowStep row = {}) {
  row.sample = true;
  auto plan = plan_of({row});
  auto l = mx::array(logits.data(), {1, static_cast<int>(logits.size())});
  return ints(sampler.sample(l, {{&plan.rows[0]}}).tokens)[0];
}

} // namespace

TEST_CASE("top_p keeps the token that crosses the threshold") {
  both([](auto pick) {
    const auto logits = log_of({0.6, 0.3, 0.1});
    // Mass reaches 0.7 with the second token: both stay, 2/3 to 1/3.
    CHECK(run({{.logits = logits, .top_p = 0.7f, .draw = 0.6f}}, pick)[0] == 0);
    CHECK(run({{.logits = logits, .top_p = 0.7f, .draw = 0.7f}}, pick)[0] == 1);
    CHECK(run({{.logits = logits, .top_p = 0.7f, .draw = 0.999f}}, pick)[0] == 1);
    // The first alone exceeds 0.5: it stays.
    CHECK(run({{.logits = logits, .top_p = 0.5f, .draw = 0.999f}}, pick)[0] == 0);
    CHECK(run({{.logits = logits, .top_p = 1e-6f, .draw = 0.5f}}, pick)[0] == 0);
  });
}

TEST_CASE("temperature 0 takes the first of the greatest logits") {
  both([](auto pick) { CHECK(run({{.logits = {1, 3, 2, 3, 0}, .temperature = 0, .draw = 0.99f}}, pick)[0] == 1); });
}

TEST_CASE("banned tokens are never drawn") {
  both([](auto pick) {
    const float no = -std::numeric_limits<float>::infinity();
    for (float u : {0.0f, 0.3f, 0.9999999f}) {
      CHECK(run({{.logits = {no, 2, no, no}, .draw = u}}, pick)[0] == 1);
      CHECK(run({{.logits = {no, no, 1, no}, .temperature = 0, .draw = u}}, pick)[0] == 2);
    }
  });
}

TEST_CASE("filters and draw follow the contract over random rows") {
  both([](auto pick) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(0, 1);
    int unsure = 0;
    for (int trial = 0; trial < 60; ++trial) {
      const int V = 1 + static_cast<int>(random() % 500);
      std::normal_distribution<float> normal(0, 0.5f + 4 * uniform(random));
      std::vector<Row> rows(1 + random() % 5);
      for (Row& row : rows) {
        for (int i = 0; i < V; ++i) {
          row.logits.push_back(normal(random));
        }
        row.temperature = random() % 5 == 0 ? 0 : 0.2f + 1.8f * uniform(random);
        row.top_p = random() % 2 ? 1.0f : 0.05f + 0.9f * uniform(random);
        row.min_p = random() % 2 ? 0.0f : 0.3f * uniform(random);
        row.top_k = random() % 2 ? 0 : 1 + static_cast<int>(random() % 600);
        row.draw = uniform(random);
      }
      const auto tokens = run(rows, pick);
      for (size_t r = 0; r < rows.size(); ++r) {
        const auto [token, sure] = expected(rows[r]);
        if (sure) {
          CHECK(tokens[r] == token);
        } else {
          ++unsure;
        }
      }
    }
    CHECK(unsure < 10);
  });
}

TEST_CASE("a draw's frequencies are the probabilities") {
  both([](auto pick) {
    const std::vector<double> p = {0.5, 0.25, 0.15, 0.1};
    std::vector<int> seen(4);
    std::vector<Row> rows;
    for (int i = 0; i < 4000; ++i) {
      rows.push_back({.logits = log_of(p), .draw = draw(42, i)});
    }
    for (int token : run(rows, pick)) {
      ++seen[token];
    }
    for (int i = 0; i < 4; ++i) {
      CHECK(seen[i] / 4000.0 == doctest::Approx(p[i]).epsilon(0.1));
    }
  });
}

TEST_CASE("penalties see the prompt and every token that was sampled") {
  Sampler sampler(3, 4);
  sampler.join({.slot = 1, .sampling = {.temperature = 0, .repetition_penalty = 2}, .prompt = {3}});
  // Token 3 is in the prompt: 4 / 2 < 3.
  CHECK(greedy(sampler, {0, 3, 1, 4}, {.slot = 1}) == 1);
  // Now 1 was made as well: 3 / 2 and 4 / 2.
  CHECK(greedy(sampler, {0, 3, 1, 4}, {.slot = 1, .draw_index = 1}) == 3);
  // A negative logit is multiplied.
  CHECK(greedy(sampler, {-3, -1, -3, -1}, {.slot = 1, .draw_index = 2}) == 1);

  sampler.join({.slot = 1, .sampling = {.temperature = 0}});
  CHECK(greedy(sampler, {0, 3, 1, 4}, {.slot = 1}) == 3);
}

TEST_CASE("presence and frequency count the output alone") {
  Sampler sampler(1, 3);
  sampler.join({.slot = 0, .sampling = {.temperature = 0, .frequency_penalty = 0.4f}, .prompt = {0, 0, 0}});
  CHECK(greedy(sampler, {1, 0.5, 0}) == 0);
  CHECK(greedy(sampler, {1, 0.5, 0}) == 0); // 0.6
  CHECK(greedy(sampler, {1, 0.5, 0}) == 1); // 0.2 against 0.5
  sampler.join(
      {.slot = 0, .sampling = {.temperature = 0, .presence_penalty = 0.6f}, .prompt = {1}, .generated = {0, 0}});
  CHECK(greedy(sampler, {1, 0.5, 0}) == 1); // 0.4, however often
}

TEST_CASE("rows with and without penalties share a step") {
  Sampler sampler(4, 3);
  sampler.join({.slot = 0, .sampling = {.temperature = 0}});
  sampler.join({.slot = 2, .sampling = {.temperature = 0, .presence_penalty = 2}, .generated = {2}});
  sampler.join({.slot = 3, .sampling = {.temperature = 0}});
  auto plan = plan_of({{.slot = 3, .sample = true}, {.slot = 2, .sample = true}, {.slot = 0, .sample = true}});
  const float l[] = {0, 1, 2, 0, 1, 2, 5, 1, 2};
  auto tokens = ints(sampler.sample(mx::array(l, {3, 3}), {{&plan.rows[0]}, {&plan.rows[1]}, {&plan.rows[2]}}).tokens);
  CHECK(tokens == std::vector<int32_t>{2, 1, 0});
}

TEST_CASE("logit_bias adds, min_tokens bans the end ids, a mask keeps") {
  Sampler sampler(1, 40);
  std::vector<float> logits(40, 0);
  logits[7] = 5;
  logits[35] = 4;
  sampler.join({.slot = 0, .sampling = {.temperature = 0, .min_tokens = 2, .logit_bias = {{9, 4.5f}}}, .end_ids = {7}});
  CHECK(greedy(sampler, logits, {.draw_index = 0}) == 9);
  CHECK(greedy(sampler, logits, {.draw_index = 1}) == 9);
  CHECK(greedy(sampler, logits, {.draw_index = 2}) == 7);
  CHECK(greedy(sampler, logits, {.draw_index = 2, .allowed = {1u << 3, 1u << 3}}) == 35);
}

TEST_CASE("scores are of the model's own distribution, greatest first") {
  Sampler sampler(1, 4);
  sampler.join({.slot = 0, .sampling = {.temperature = 0, .logit_bias = {{0, 100.0f}}, .logprobs = 2}});
  auto plan = plan_of({{.slot = 0, .sample = true}});
  const auto l = log_of({0.1, 0.2, 0.4, 0.3});
  auto sampled = sampler.sample(mx::array(l.data(), {1, 4}), {{&plan.rows[0]}});
  CHECK(ints(sampled.tokens)[0] == 0);
  REQUIRE(sampled.scores);
  CHECK(floats(sampled.scores->chosen)[0] == doctest::Approx(std::log(0.1)));
  CHECK(ints(*sampled.scores->ids) == std::vector<int32_t>{2, 3});
  CHECK(floats(*sampled.scores->top)[0] == doctest::Approx(std::log(0.4)));
  CHECK(floats(*sampled.scores->top)[1] == doctest::Approx(std::log(0.3)));
}
