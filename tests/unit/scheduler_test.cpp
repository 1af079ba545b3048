#include "engine/scheduler.h"
#include "fakes.h"

#include <doctest/doctest.h>

#include <numeric>
#include <random>

using namespace parallm;
using namespace parallm::fakes;

namespace {

EngineOptions small_options() {
  EngineOptions options;
  options.max_rows = 4;
  options.block_size = 4;
  options.blocks = 16;
  options.prefill_tokens = 16;
  options.mixed_tokens = 5;
  options.end_ids = {end_id};
  options.vocabulary = vocabulary;
  return options;
}

std::optional<Error> guard(const std::function<void()>& call) {
  try {
    call();
    return std::nullopt;
  } catch (const std::exception& error) {
    return Error(Kind::internal, "", error.what());
  }
}

std::vector<int32_t> count_up(int length, int32_t first = first_plain_id) {
  std::vector<int32_t> ids(length);
  for (int i = 0; i < length; ++i) {
    ids[i] = first_plain_id + (first + i) % (vocabulary - first_plain_id);
  }
  return ids;
}

Request request(std::vector<int32_t> prompt, int max_tokens) {
  Request r;
  r.prompt = std::move(prompt);
  r.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  return r;
}

/** The engine's loop without its thread. */
struct World {
  explicit World(EngineOptions given)
      : options(given), scheduler(given, guard), runner(given.blocks, given.block_size) {}

  Plan step() {
    Plan plan = scheduler.plan();
    scheduler.verify();
    try {
      if (!plan.empty()) {
        runner.launch(plan);
      }
      if (scheduler.uncommitted() > (plan.empty() ? 0 : 1)) {
        scheduler.commit(runner.collect(), seconds());
      }
    } catch (const std::logic_error& error) {
      FAIL(std::string(error.what()));
    } catch (const std::runtime_error& error) {
      runner.reset();
      scheduler.failed(Error(Kind::internal, "", error.what()));
    }
    scheduler.verify();
    take();
    return plan;
  }

  void take() {
    for (RowEvent& e : scheduler.take_events()) {
      auto& out = outputs[e.row];
      REQUIRE(out.finish == Finish::none);
      if (e.event.token) {
        out.tokens.push_back(e.event.token->token.id);
      }
      if (!e.event.prompt.empty()) {
        CHECK(out.prompt.empty());
        CHECK(out.tokens.size() <= 1);
        out.prompt = std::move(e.event.prompt);
      }
      out.finish = e.event.finish;
      cached[e.row] = e.event.cached_tokens;
    }
  }

  void finish(int limit = 20000) {
    while (!scheduler.idle()) {
      REQUIRE(limit-- > 0);
      step();
    }
    CHECK(scheduler.stats().blocks_used == 0);
  }

  EngineOptions options;
  Scheduler scheduler;
  FakeRunner runner;
  std::function<double()> seconds = [] { return 0.0; }; // of a step
  std::map<uint64_t, Output> outputs;
  std::map<uint64_t, int> cached;
};

void check_same(const Output& got, const Output& wanted) {
  CHECK(got.tokens == wanted.tokens);
  CHECK(got.finish == wanted.finish);
  REQUIRE(got.prompt.size() == wanted.prompt.size());
  for (size_t i = 0; i < got.prompt.size(); ++i) {
    CHECK(got.prompt[i].token.id == wanted.prompt[i].token.id);
    CHECK(got.prompt[i].token.logprob == wanted.prompt[i].token.logprob);
  }
}

} // namespace

TEST_CASE("a request that can never fit is refused with both lengths") {
  auto options = small_options();
  World world(options);
  auto param_of = [&](int prompt, int max_tokens) {
    try {
      world.scheduler.add(request(count_up(prompt), max_tokens));
    } catch (const Error& error) {
      CHECK(error.kind == Kind::invalid);
      const std::string text = error.what();
      CHECK(text.find(std::to_string(prompt)) != std::string::npos);
      CHECK(text.find(std::to_string(max_tokens)) != std::string::npos);
      return error.param;
    }
    return std::string();
  };
  CHECK(param_of(65, 1) == "prompt");
  CHECK(param_of(60, 5) == "max_tokens");
  CHECK(param_of(60, 4) == "");
  world.finish();
}

TEST_CASE("equal prompts that arrive at once are computed once") {
  auto options = small_options();
  options.max_rows = 8;
  options.blocks = 64;
  options.prefill_tokens = 64;
  World world(options);
  for (int i = 0; i < 8; ++i) {
    world.scheduler.add(request(count_up(18), 4));
  }
  Plan plan = world.step();
  REQUIRE(plan.rows.size() == 8);
  CHECK(plan.rows[0].count == 18);
  for (int i = 1; i < 8; ++i) {
    CHECK(plan.rows[i].count == 2);
  }
  world.finish();
  CHECK(world.cached[1] == 0);
  CHECK(world.cached[8] == 16);
  CHECK(world.outputs[8].tokens == world.outputs[1].tokens);
}

TEST_CASE("the last prompt token is computed, and salts don't share") {
  World world(small_options());
  world.scheduler.add(request(count_up(16), 1));
  world.finish();
  auto second = world.scheduler.add(request(count_up(16), 1));
  auto salted = request(count_up(16), 1);
  salted.cache_salt = "other";
  auto third = world.scheduler.add(salted);
  world.finish();
  CHECK(world.cached[second] == 12);
  CHECK(world.cached[third] == 0);
}

TEST_CASE("running rows advance every step while a long prompt is read") {
  auto options = small_options();
  options.blocks = 64;
  World world(options);
  world.scheduler.add(request(count_up(3), 60));
  world.step();
  world.step();
  world.scheduler.add(request(count_up(80, 9), 4));
  for (int i = 0; i < 12; ++i) {
    Plan plan = world.step();
    REQUIRE(plan.rows.size() == 2);
    CHECK(plan.rows[0].count == 1);
    CHECK(plan.rows[0].ids.empty());
    CHECK(plan.rows[1].count == options.mixed_tokens);
  }
  world.finish();
}

TEST_CASE("a preempted row goes on with the same text") {
  auto options = small_options();
  options.blocks = 8;
  World world(options);
  for (int i = 0; i < 3; ++i) {
    world.scheduler.add(request(count_up(5, i * 7), 20));
  }
  world.finish();
  CHECK(world.scheduler.stats().preemptions > 0);
  for (int i = 0; i < 3; ++i) {
    check_same(world.outputs[i + 1], alone(request(count_up(5, i * 7), 20), nullptr));
  }
}

TEST_CASE("max_tokens 0 scores the prompt and ends without a token") {
  World world(small_options());
  auto r = request(count_up(21), 0);
  r.sampling.prompt_logprobs = true;
  world.scheduler.add(r);
  world.finish();
  CHECK(world.outputs[1].prompt.size() == 20);
  check_same(world.outputs[1], alone(r, nullptr));
}

TEST_CASE("a row that fails alone ends with an error, the others go on") {
  World world(small_options());
  auto bad = count_up(6);
  bad[3] = poison_id;
  world.scheduler.add(request(count_up(5, 1), 12));
  world.scheduler.add(request(bad, 12));
  world.scheduler.add(request(count_up(5, 2), 12));
  world.finish();
  CHECK(world.outputs[2].finish == Finish::error);
  check_same(world.outputs[1], alone(request(count_up(5, 1), 12), nullptr));
  check_same(world.outputs[3], alone(request(count_up(5, 2), 12), nullptr));
}

TEST_CASE("a mask that throws ends its row alone") {
  World world(small_options());
  auto r = request(count_up(5), 12);
  r.mask = std::make_shared<FakeMask>(2);
  world.scheduler.add(r);
  world.scheduler.add(request(count_up(5), 12));
  world.finish();
  CHECK(world.outputs[1].finish == Finish::error);
  CHECK(world.outputs[1].tokens.size() == 2);
  check_same(world.outputs[2], alone(request(count_up(5), 12), nullptr));
}

TEST_CASE("results that don't belong to the step change nothing") {
  World world(small_options());
  world.scheduler.add(request(count_up(5), 2));
  Plan plan = world.scheduler.plan();
  CHECK_THROWS_AS(world.scheduler.commit({}), Error);
  RowResult wrong;
  wrong.slot = plan.rows[0].slot;
  wrong.sampled = {{{vocabulary, 0}, {}}};
  CHECK_THROWS_AS(world.scheduler.commit({wrong}), Error);
  CHECK(world.scheduler.uncommitted() == 1);
  world.scheduler.verify();
}

namespace {

struct Asked {
  Request request;
  bool masked;
  bool cancelled = false;
};

const int more_place = 0; // of a Recalled, which no fake reads

Request random_request(std::mt19937& random, bool& masked, int room) {
  auto below = [&](int n) { return static_cast<int>(random() % n); };
  const int most = std::min(room, 40);
  const int length = 1 + below(most);
  Request r;
  r.prompt = count_up(length, below(3)); // few beginnings: much to share
  for (int i = below(2 * length); i < length; ++i) {
    r.prompt[i] = first_plain_id + below(vocabulary - first_plain_id);
  }
  r.max_tokens = below(std::min(room - length, 24) + 1);
  r.sampling.seed = below(3);
  r.sampling.temperature = below(2);
  r.sampling.ignore_eos = below(2);
  r.sampling.min_tokens = below(4);
  r.sampling.prompt_logprobs = below(4) == 0;
  if (below(4) == 0) { // it shares KV with rows that don't look again
    r.recall.more =
        std::shared_ptr<const Recalled>(std::shared_ptr<void>(), reinterpret_cast<const Recalled*>(&more_place));
    r.recall.unsure_above = 1;
  }
  if (below(3) == 0) {
    r.sampling.stop_token_ids = {first_plain_id + below(20)};
  }
  if (below(5) == 0) {
    r.cache_salt = "salt";
  }
  masked = below(4) == 0;
  if (masked) {
    r.sampling.min_tokens = 0;
    r.mask = std::make_shared<FakeMask>();
  }
  return r;
}

} // namespace

TEST_CASE("a preempted row takes no shared KV from where it recalled more") {
  auto options = small_options();
  options.block_size = 2;
  options.blocks = 18;
  for (int first = 0; first < 6; ++first) {
    CAPTURE(first);
    World world(options);
    auto plain = request(count_up(6, first), 24);
    plain.sampling.temperature = 0;
    auto more = plain;
    more.recall.more =
        std::shared_ptr<const Recalled>(std::shared_ptr<void>(), reinterpret_cast<const Recalled*>(&more_place));
    more.recall.unsure_above = 1;
    world.scheduler.add(plain);
    const uint64_t row = world.scheduler.add(more);
    world.finish(); // the runner throws where a position's KV is another's
    check_same(world.outputs[row], alone(more, nullptr));
    CHECK(world.scheduler.stats().preemptions > 0);
    CHECK(world.scheduler.stats().unsure_steps > 0);
  }
}

TEST_CASE("whatever runs beside it, a row gives what it gives alone") {
  uint64_t preemptions = 0, hits = 0, cancelled = 0, failures = 0, unsure = 0;
  std::array<uint64_t, 2> guessed{}, right{};
  for (uint32_t seed = 0; seed < 400; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto below = [&](int n) { return static_cast<int>(random() % n); };
    auto options = small_options();
    options.max_rows = 1 + below(6);
    options.block_size = 1 + below(5);
    options.blocks = 6 + below(20);
    options.prefill_tokens = 1 + below(30);
    options.mixed_tokens = 1 + below(8);
    options.prefix_cache = below(4) > 0;
    options.guesses = below(4) * below(3);
    options.draft_model = below(2);
    World world(options);
    if (below(2)) { // guesses pay, or don't, by turns
      world.seconds = [&] { return 1e-3 * (1 + below(8)); };
    }
    for (int i = below(2) ? 0 : 3; i > 0; --i) {
      (below(2) ? world.runner.fail_launch : world.runner.fail_collect).insert(1 + below(60));
      ++failures;
    }
    std::map<uint64_t, Asked> asked;
    for (int left = 12; left > 0 || !world.scheduler.idle();) {
      if (left > 0 && below(3) == 0) {
        --left;
        Asked one;
        one.request = random_request(random, one.masked, options.blocks * options.block_size);
        asked.emplace(world.scheduler.add(one.request), one);
      }
      if (!asked.empty() && below(40) == 0) {
        const uint64_t row = 1 + below(asked.size());
        asked.at(row).cancelled = true;
        world.scheduler.cancel(row);
        world.scheduler.verify();
      }
      world.step();
    }
    world.finish();
    for (auto& [row, one] : asked) {
      CAPTURE(row);
      FakeMask mask;
      const Output wanted = alone(one.request, one.masked ? &mask : nullptr);
      const Output& got = world.outputs[row];
      // A step failed twice in a row may take the row it was retried with.
      if (got.finish == Finish::cancelled || got.finish == Finish::error) {
        CHECK((one.cancelled || got.finish == Finish::error));
        REQUIRE(got.tokens.size() <= wanted.tokens.size());
        CHECK(std::equal(got.tokens.begin(), got.tokens.end(), wanted.tokens.begin()));
      } else {
        check_same(got, wanted);
      }
    }
    const EngineStats stats = world.scheduler.stats();
    preemptions += stats.preemptions;
    hits += stats.prefix_hits;
    cancelled += stats.cancelled;
    unsure += stats.unsure_steps;
    guessed[options.draft_model] += stats.guessed_tokens;
    right[options.draft_model] += stats.right_guesses;
    CHECK(stats.cancelled + stats.failed + stats.finished_stop + stats.finished_length == asked.size());
  }
  // The workloads reach what they are meant to reach.
  CHECK(preemptions > 100);
  CHECK(hits > 1000);
  CHECK(cancelled > 100);
  CHECK(failures > 100);
  CHECK(unsure > 1000);
  for (bool draft_model : {false, true}) {
    CHECK(right[draft_model] > 500);
    CHECK(guessed[draft_model] > right[draft_model] + 100);
  }
}

TEST_CASE("guesses make more tokens of fewer steps, never past max_tokens or an end") {
  for (bool draft_model : {false, true}) {
    CAPTURE(draft_model);
    auto options = small_options();
    options.guesses = 4;
    options.draft_model = draft_model;
    World world(options);
    Request r = request(count_up(9), 40);
    r.sampling.temperature = 0;
    r.sampling.ignore_eos = false;
    r.sampling.stop_token_ids = {first_plain_id + 40};
    world.scheduler.add(r);
    world.finish();
    check_same(world.outputs[1], alone(r, nullptr));
    const EngineStats stats = world.scheduler.stats();
    CHECK(stats.right_guesses > 10);
    CHECK(stats.steps < stats.generated_tokens * 3 / 4);
  }
}

TEST_CASE("a draft model reads a shared beginning once") {
  auto options = small_options();
  options.guesses = 2;
  options.draft_model = true;
  World world(options);
  world.scheduler.add(request(count_up(13), 12)); // time to read it all, some at a step
  world.finish();
  world.scheduler.add(request(count_up(13), 4));
  int read = 0;
  while (!world.scheduler.idle()) {
    for (const RowStep& row : world.step().rows) {
      read += row.draft_ids.size();
    }
  }
  CHECK(world.cached[2] == 12);
  CHECK(read <= 4); // the 13th and what came after
}

TEST_CASE("a salt that looks like what the scheduler adds to one shares nothing") {
  auto options = small_options();
  options.own_kv_past = 8;
  World world(options);
  world.scheduler.add(request(count_up(13), 2)); // its KV is its length's alone
  world.finish();
  for (const char* salt : {"/13", "0:/13"}) {
    Request r = request(count_up(13), 2);
    r.prompt.resize(8);
    r.cache_salt = salt;
    world.scheduler.add(r);
  }
  world.finish();
  CHECK(world.cached[2] == 0);
  CHECK(world.cached[3] == 0);
  world.scheduler.add(request(count_up(13), 2));
  world.finish();
  CHECK(world.cached[4] == 12);
}

TEST_CASE("what a draft model has yet to read is read within a step's budget") {
  auto options = small_options(); // 5 tokens beside decoding rows
  options.blocks = 64;
  options.guesses = 2;
  options.draft_model = true;
  World world(options);
  for (int i = 0; i < 4; ++i) {
    world.scheduler.add(request(count_up(12, 3 * i), 20));
  }
  bool guessed = false;
  while (!world.scheduler.idle()) {
    int backlog = 0;
    for (const RowStep& row : world.step().rows) {
      backlog += row.draft_ids.size() > 2 ? row.draft_ids.size() : 0;
      guessed = guessed || row.guesses > 0;
    }
    CHECK(backlog <= options.mixed_tokens);
  }
  CHECK(guessed);
}
