#include "fakes.h"

#include <doctest/doctest.h>

#include <future>
#include <limits>
#include <thread>

using namespace parallm;
using namespace parallm::fakes;
using namespace std::chrono_literals;

namespace {

EngineOptions engine_options() {
  EngineOptions options;
  options.max_rows = 4;
  options.max_waiting = 64;
  options.block_size = 4;
  options.blocks = 24;
  options.prefill_tokens = 16;
  options.mixed_tokens = 5;
  options.end_ids = {end_id};
  options.vocabulary = vocabulary;
  return options;
}

auto make_fake(const EngineOptions& options) {
  return [options](EngineOptions&) { return std::make_unique<FakeRunner>(options.blocks, options.block_size); };
}

Request ask(int32_t first, int length, int max_tokens) {
  Request r;
  for (int i = 0; i < length; ++i) {
    r.prompt.push_back(first_plain_id + (first + i) % 40);
  }
  r.max_tokens = max_tokens;
  r.sampling.ignore_eos = true;
  return r;
}

Output read(Stream& stream) {
  Output out;
  while (out.finish == Finish::none) {
    Event event = stream.next();
    if (event.token) {
      out.tokens.push_back(event.token->token.id);
    }
    out.finish = event.finish;
  }
  return out;
}

/** Holds the engine's thread inside a job until it goes. */
struct Hold {
  explicit Hold(Engine& engine) {
    done = engine.run([this](Runner&) {
      inside.set_value();
      gate.get_future().wait();
    });
    inside.get_future().wait();
  }
  void open() {
    gate.set_value();
    done.get();
  }
  std::promise<void> inside, gate;
  std::future<void> done;
};

} // namespace

TEST_CASE("many threads get what each gets alone") {
  Engine engine(engine_options(), make_fake(engine_options()));
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 20; ++i) {
        Request r = ask(t % 3, 1 + (t * 7 + i) % 30, i % 15);
        Stream stream = engine.generate(r);
        if (i % 5 == 4) {
          continue; // dropped: cancelled
        }
        wrong += read(stream).tokens != alone(r, nullptr).tokens;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK(wrong == 0);
  CHECK(engine.drain(10s));
  const EngineStats stats = engine.stats();
  CHECK(stats.blocks_used == 0);
  CHECK(stats.running + stats.waiting == 0);
  CHECK(stats.cancelled + stats.finished_length + stats.finished_stop == 8 * 20);
  CHECK_THROWS_AS(engine.generate(ask(1, 3, 3)), Error);
}

TEST_CASE("one request over the limit is busy; a place is free again") {
  auto options = engine_options();
  options.max_rows = 1;
  options.max_waiting = 2;
  Engine engine(options, make_fake(options));
  Hold hold(engine);
  std::vector<Stream> streams;
  for (int i = 0; i < 3; ++i) {
    streams.push_back(engine.generate(ask(i, 4, 3)));
  }
  try {
    engine.generate(ask(9, 4, 3));
    FAIL("not refused");
  } catch (const Error& error) {
    CHECK(error.kind == Kind::busy);
  }
  hold.open();
  for (Stream& stream : streams) {
    CHECK(read(stream).finish == Finish::length);
  }
  Stream again = engine.generate(ask(9, 4, 3));
  CHECK(read(again).tokens.size() == 3);
}

TEST_CASE("ids and numbers out of range are refused naming the field") {
  Engine engine(engine_options(), make_fake(engine_options()));
  auto param_of = [&](auto change) {
    Request r = ask(1, 4, 3);
    change(r);
    try {
      engine.generate(r);
    } catch (const Error& error) {
      CHECK(error.kind == Kind::invalid);
      return error.param;
    }
    return std::string();
  };
  const float nan = std::numeric_limits<float>::quiet_NaN();
  CHECK(param_of([](Request&) {}) == "");
  CHECK(param_of([](Request& r) { r.prompt.clear(); }) == "prompt");
  CHECK(param_of([](Request& r) { r.prompt[1] = vocabulary; }) == "prompt");
  CHECK(param_of([](Request& r) { r.prompt[1] = -1; }) == "prompt");
  CHECK(param_of([](Request& r) { r.max_tokens = -1; }) == "max_tokens");
  CHECK(param_of([](Request& r) { r.max_tokens = 999; }) == "max_tokens");
  CHECK(param_of([&](Request& r) { r.sampling.temperature = nan; }) == "temperature");
  CHECK(param_of([](Request& r) { r.sampling.top_p = 0; }) == "top_p");
  CHECK(param_of([&](Request& r) { r.sampling.logit_bias = {{3, nan}}; }) == "logit_bias");
  CHECK(param_of([](Request& r) { r.sampling.logit_bias = {{99, 1}}; }) == "logit_bias");
  CHECK(param_of([](Request& r) { r.sampling.stop_token_ids = {48}; }) == "stop_token_ids");
}

TEST_CASE("wake is called when a stream fills, and at once when it is full") {
  Engine engine(engine_options(), make_fake(engine_options()));
  Hold hold(engine);
  Stream stream = engine.generate(ask(1, 4, 1));
  CHECK(!stream.try_next());
  auto woken = std::make_shared<std::promise<void>>();
  stream.on_ready([woken] { woken->set_value(); });
  hold.open();
  woken->get_future().wait();
  int calls = 0;
  stream.on_ready([&calls] { ++calls; });
  CHECK(calls == 1);
  CHECK(stream.try_next()->finish == Finish::length);
}

TEST_CASE("a job runs with no step under way, and its error is its caller's") {
  Engine engine(engine_options(), make_fake(engine_options()));
  Stream stream = engine.generate(ask(1, 4, 60));
  auto failed = engine.run([](Runner& runner) {
    // The fake throws where nothing is under way.
    CHECK_THROWS_AS(runner.collect(), std::logic_error);
    throw std::runtime_error("job");
  });
  CHECK_THROWS_WITH(failed.get(), "job");
  CHECK(read(stream).tokens == alone(ask(1, 4, 60), nullptr).tokens);
}

TEST_CASE("a runner that can't be made is the constructor's error") {
  CHECK_THROWS_WITH(
      Engine(
          engine_options(), [](EngineOptions&) -> std::unique_ptr<Runner> { throw std::runtime_error("no weights"); }),
      "no weights");
}

TEST_CASE("make_runner completes the options") {
  EngineOptions options = engine_options();
  options.vocabulary = 0;
  options.blocks = 0;
  Engine engine(options, [](EngineOptions& completed) {
    completed = engine_options();
    return make_fake(completed)(completed);
  });
  CHECK(engine.options().blocks == engine_options().blocks);
  Stream stream = engine.generate(ask(1, 4, 3));
  CHECK(read(stream).tokens == alone(ask(1, 4, 3), nullptr).tokens);
}

TEST_CASE("a step that fails costs no one a token but the row at fault") {
  Engine engine(engine_options(), make_fake(engine_options()));
  Request bad = ask(5, 6, 9);
  bad.prompt[2] = poison_id;
  Stream first = engine.generate(ask(1, 4, 30));
  Stream second = engine.generate(bad);
  Stream third = engine.generate(ask(2, 9, 30));
  CHECK(read(second).finish == Finish::error);
  CHECK(read(first).tokens == alone(ask(1, 4, 30), nullptr).tokens);
  CHECK(read(third).tokens == alone(ask(2, 9, 30), nullptr).tokens);
}

TEST_CASE("the destructor cancels what runs and what waits") {
  std::vector<Stream> streams;
  {
    auto options = engine_options();
    Engine engine(options, make_fake(options));
    Hold hold(engine);
    for (int i = 0; i < 12; ++i) {
      streams.push_back(engine.generate(ask(i, 4, 80)));
    }
    CHECK(!engine.drain(1ms));
    hold.open();
  }
  for (Stream& stream : streams) {
    const Finish finish = read(stream).finish;
    CHECK((finish == Finish::cancelled || finish == Finish::length));
  }
}

TEST_CASE("an engine that can't go on says so to whom it hasn't served, jobs too") {
  struct Broken : FakeRunner {
    using FakeRunner::FakeRunner;
    std::promise<void> inside, go;
    void launch(const Plan&) override {
      inside.set_value();
      go.get_future().wait();
      throw std::runtime_error("launch");
    }
    void reset() override {
      throw std::runtime_error("reset");
    }
  };
  auto options = engine_options();
  Broken* runner = nullptr;
  Engine engine(options, [&](EngineOptions&) {
    auto made = std::make_unique<Broken>(options.blocks, options.block_size);
    runner = made.get();
    return made;
  });
  Stream stream = engine.generate(ask(1, 4, 30));
  runner->inside.get_future().wait();
  std::future<void> job = engine.run([](Runner&) { FAIL("it ran"); });
  runner->go.set_value();
  const auto kind_of = [](const std::function<void()>& call) {
    try {
      call();
    } catch (const Error& error) {
      return error.kind;
    }
    return Kind::not_found; // of none
  };
  CHECK(kind_of([&] { job.get(); }) == Kind::unavailable);
  CHECK(read(stream).finish == Finish::error);
  CHECK(kind_of([&] { engine.run([](Runner&) {}); }) == Kind::unavailable);
  CHECK(kind_of([&] { engine.generate(ask(1, 4, 30)); }) == Kind::unavailable);
}
