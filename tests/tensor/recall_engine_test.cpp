// Memories through the engine: rows with different ones, and none, in one batch and with a shared prefix cache, each
// make the tokens of the Extended Mind reference.
#include "recalling.h"

#include "engine/engine.h"
#include "engine/reader.h"
#include "engine/runner.h"

#include <boost/json.hpp>

#include <cmath>
#include <fstream>
#include <map>
#include <set>

namespace parallm::test {

namespace {

using Ids = std::vector<int32_t>;

Ids tokens_of(const boost::json::value& value) {
  return boost::json::value_to<Ids>(value);
}

std::unique_ptr<Engine> recalling_engine(int guesses = 0, int blocks = 128, int context = 64) {
  EngineOptions options;
  options.max_rows = 8;
  options.block_size = 4;
  options.blocks = blocks;
  options.guesses = guesses;
  options.memories = true;
  options.prefill_tokens = options.mixed_tokens = 5;
  options.max_context = context;
  return std::make_unique<Engine>(options, [blocks](EngineOptions& completed) {
    Checkpoint checkpoint = open_checkpoint("tests/golden/extended_mind/gqa", {.dtype = mx::float32});
    auto model = make_model(checkpoint.config, checkpoint.weights);
    completed.vocabulary = model->vocabulary();
    const auto specs = model->cache_specs();
    auto caches = make_paged_caches(specs, {.block_size = 4, .blocks = blocks, .slots = 8, .dtype = mx::float32});
    return std::make_unique<ModelRunner>(
        std::move(model), make_recall_caches(std::move(caches), static_cast<int>(specs.size())), completed.max_rows);
  });
}

struct Made {
  Ids ids;
  int cached = 0;
  std::vector<MemoryUse> uses; // of each token
  std::optional<MemoryUse> whole;
};

Made read_all(Stream& stream) {
  Made made;
  while (true) {
    Event event = stream.next();
    REQUIRE(!event.error);
    if (event.token) {
      made.ids.push_back(event.token->token.id);
    }
    if (event.token_use) {
      made.uses.push_back(*event.token_use);
    }
    made.whole = event.whole_use;
    made.cached = event.cached_tokens;
    if (event.finish != Finish::none) {
      return made;
    }
  }
}

std::shared_ptr<const Memory> read_memory(Engine& engine, const Ids& tokens, const ReadHow& how = {}) {
  std::shared_ptr<const Memory> memory;
  engine
      .run([&](Runner& runner) {
        Reader reader(dynamic_cast<ModelRunner&>(runner).model(), mx::float32, tokens, how);
        while (!memory) {
          memory = reader.step();
        }
      })
      .get();
  return memory;
}

bool near(const MemoryUse& a, const MemoryUse& b) {
  return a.queries == b.queries && std::abs(a.mass - b.mass) < 1e-5 &&
      std::equal(a.memories.begin(), a.memories.end(), b.memories.begin(), b.memories.end(), [](auto& x, auto& y) {
           return x.memory == y.memory && x.count == y.count && std::abs(x.mass - y.mass) < 1e-5 &&
               std::abs(x.cosine - y.cosine) < 1e-5;
         });
}

} // namespace

TEST_CASE("recall: rows of one engine make the reference's tokens, whatever memories their neighbours have") {
  std::ifstream file("tests/golden/extended_mind/cases.json");
  const auto all = boost::json::parse(file).as_object();
  auto engine = recalling_engine();
  const auto memory = read_memory(*engine, tokens_of(all.at("memory")), {.dropped = tokens_of(all.at("special"))});
  const auto memories = std::make_shared<Memories>(std::vector<std::shared_ptr<const Memory>>{memory});
  std::vector<Request> requests;
  std::vector<Ids> wanted;
  for (const auto& entry : all.at("cases").as_array()) {
    const auto& one = entry.as_object();
    if (one.at("model").as_string() != "gqa") {
      continue;
    }
    RecallHow how{.top_k = one.at("top_k").to_number<int>(), .threshold = {}, .layers = {}};
    for (const auto& layer : one.at("layers").as_array()) {
      how.layers.push_back(layer.as_bool());
    }
    if (!one.at("threshold").is_null()) {
      how.threshold = one.at("threshold").to_number<float>();
    }
    Request request;
    request.prompt = tokens_of(all.at("prompt"));
    request.max_tokens = 8;
    request.sampling.temperature = 0;
    if (how.top_k > 0) { // else the row has none
      request.recall = {std::make_shared<Recalled>(memories, how), std::to_string(requests.size()), 0};
    }
    requests.push_back(std::move(request));
    wanted.push_back(tokens_of(one.at("next")));
  }
  REQUIRE(requests.size() == 12);
  for (int again : {0, 1}) {
    std::vector<Stream> streams;
    for (const auto& request : requests) {
      streams.push_back(engine->generate(request));
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      CAPTURE(again);
      CAPTURE(i);
      const Made made = read_all(streams[i]);
      CHECK(made.ids == wanted[i]);
      if (again == 1 || (i != 0 && i != 6)) { // two have no memories: one may find the other's prefix at once
        CHECK((made.cached > 0) == (again == 1));
      }
    }
  }
}

TEST_CASE("recall: each token tells what it used, whatever runs beside its row, guesses and preemptions too") {
  std::ifstream file("tests/golden/extended_mind/cases.json");
  const auto all = boost::json::parse(file).as_object();
  const auto text = tokens_of(all.at("memory"));
  const auto prompt = tokens_of(all.at("prompt"));
  const auto ask = [&](Engine& engine, const std::shared_ptr<const Memories>& memories, int i) {
    Request request;
    request.prompt.assign(prompt.begin(), prompt.end() - i);
    request.max_tokens = 12 + 4 * i;
    request.sampling.temperature = 0;
    if (i % 2 == 0) {
      request.sampling.logit_bias = {{5, 100.0f}}; // the same token again and again is easy to guess
    }
    RecallHow how{.top_k = i == 3 ? 0 : 2 << i};
    how.record = i != 1;
    how.contiguous = i == 2;
    request.recall = {
        std::make_shared<Recalled>(memories, how), std::to_string(i), how.contiguous ? int(text.size()) : 0};
    return engine.generate(std::move(request));
  };
  std::vector<Made> alone;
  for (int way : {0, 1, 2}) { // one after another; at once, with guesses; at once, with few blocks
    CAPTURE(way);
    auto engine = recalling_engine(way == 1 ? 4 : 0, way == 2 ? 16 : 128, 128);
    auto memories = std::make_shared<Memories>(std::vector<std::shared_ptr<const Memory>>{read_memory(*engine, text)});
    std::vector<Stream> streams;
    for (int i = 0; i < 4; ++i) {
      streams.push_back(ask(*engine, memories, i));
      if (way == 0) {
        alone.push_back(read_all(streams[i]));
      }
    }
    for (int i = 0; i < 4; ++i) {
      CAPTURE(i);
      const Made made = way == 0 ? alone[i] : read_all(streams[i]);
      CHECK(made.ids == alone[i].ids);
      if (i == 1) {
        CHECK(made.uses.empty());
        CHECK(!made.whole);
        continue;
      }
      REQUIRE(made.uses.size() == made.ids.size());
      REQUIRE(made.whole);
      CHECK(made.whole->queries == static_cast<int>(made.ids.size()));
      CHECK(near(*made.whole, *alone[i].whole));
      double sum = 0, of_memories = 0;
      for (size_t t = 0; t < made.uses.size(); ++t) {
        CHECK(near(made.uses[t], alone[i].uses[t]));
        CHECK(made.uses[t].queries == 1);
        CHECK(made.uses[t].memories.size() <= 32);
        sum += made.uses[t].mass;
      }
      for (auto& used : made.whole->memories) {
        of_memories += used.mass;
      }
      CHECK(std::abs(sum - made.whole->mass) < 1e-4);
      CHECK(std::abs(sum - of_memories) < 1e-4);
      CHECK((sum > 0.1) == (i != 3));
    }
    if (way == 1) {
      CHECK(engine->stats().right_guesses > 0);
    } else if (way == 2) {
      CHECK(engine->stats().preemptions > 0);
    }
  }
}

TEST_CASE("recall: where the next token is unsure its position is as with more memories, whatever runs beside it") {
  std::ifstream file("tests/golden/extended_mind/cases.json");
  const auto all = boost::json::parse(file).as_object();
  const auto text = numbers(all.at("memory")), prompt = numbers(all.at("prompt"));
  Recalling model("tests/golden/extended_mind/gqa");
  const auto own = model.read(text);
  const RecallHow few{.top_k = 1}, many{.top_k = 9};
  constexpr int made = 20;
  constexpr float penalty = 0.05f;
  const auto entropy_of = [](const std::vector<float>& logits) {
    const double top = *std::max_element(logits.begin(), logits.end());
    double total = 0, sum = 0;
    for (float x : logits) {
      total += std::exp(x - top);
      sum += std::exp(x - top) * (x - top);
    }
    return std::log(total) - sum / total;
  };
  // Token by token; each position's KV is that of its last pass.
  const auto by_definition = [&](double above, std::vector<int>& looked, std::vector<double>& entropies) {
    std::vector<int> ids = prompt;
    std::map<int, int> counts;
    auto logits = run(model, {{prompt, 0, recalled({own}, few)}}).back();
    for (int t = 0; t < made; ++t) {
      const int at = ids.size() - 1;
      if (t > 0) {
        logits = run(model, {{{ids.back()}, at, recalled({own}, few)}}).back();
      }
      entropies.push_back(entropy_of(logits));
      looked.push_back(entropies.back() > above);
      if (looked.back()) {
        logits = run(model, {{{ids.back()}, at, recalled({own}, many)}}).back();
      }
      for (auto [id, count] : counts) {
        logits[id] -= penalty * count;
      }
      ids.push_back(std::max_element(logits.begin(), logits.end()) - logits.begin());
      ++counts[ids.back()];
    }
    return Ids(ids.begin() + prompt.size(), ids.end());
  };
  std::vector<int> looked;
  std::vector<double> entropies;
  by_definition(1e9, looked, entropies);
  std::sort(entropies.begin(), entropies.end());
  const double middle = (entropies[made / 2] + entropies[made / 2 - 1]) / 2;
  const std::vector<double> limits{1e-6, middle, 1e9, middle};
  std::set<Ids> different;
  std::vector<std::pair<Ids, std::vector<int>>> wanted;
  for (double above : limits) {
    looked.clear();
    Ids ids = by_definition(above, looked, entropies);
    different.insert(ids);
    wanted.emplace_back(std::move(ids), looked);
  }
  for (int way : {0, 1, 2}) { // at once; with guesses; with few blocks
    CAPTURE(way);
    auto engine = recalling_engine(way == 1 ? 4 : 0, way == 2 ? 14 : 128, 128);
    const auto memory = read_memory(*engine, {text.begin(), text.end()});
    auto memories = std::make_shared<Memories>(std::vector<std::shared_ptr<const Memory>>{memory});
    std::vector<Stream> streams;
    for (double above : limits) {
      Request request;
      request.prompt.assign(prompt.begin(), prompt.end());
      request.max_tokens = made;
      request.sampling.temperature = 0;
      request.sampling.frequency_penalty = penalty;
      request.recall = {std::make_shared<Recalled>(memories, few), "same", 0};
      request.recall.more = std::make_shared<Recalled>(memories, many);
      request.recall.unsure_above = above;
      streams.push_back(engine->generate(std::move(request)));
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      CAPTURE(i);
      Ids ids;
      std::vector<int> again;
      for (Finish finish = Finish::none; finish == Finish::none;) {
        Event event = streams[i].next();
        REQUIRE(!event.error);
        finish = event.finish;
        if (event.token) {
          ids.push_back(event.token->token.id);
          again.push_back(event.looked_again);
        }
      }
      CHECK(ids == wanted[i].first);
      CHECK(again == wanted[i].second);
    }
    CHECK(engine->stats().unsure_steps >= made + 2);
    CHECK((way != 2 || engine->stats().preemptions > 0));
  }
  CHECK(different.size() == 3); // else nothing was seen of it
}

TEST_CASE("recall: a stream that is cancelled ends with what was used so far") {
  std::ifstream file("tests/golden/extended_mind/cases.json");
  const auto all = boost::json::parse(file).as_object();
  auto engine = recalling_engine();
  Request request;
  request.prompt = tokens_of(all.at("prompt"));
  request.max_tokens = 40;
  request.sampling.temperature = 0;
  auto memories = std::make_shared<Memories>(
      std::vector<std::shared_ptr<const Memory>>{read_memory(*engine, tokens_of(all.at("memory")))});
  RecallHow how;
  how.record = true;
  request.recall = {std::make_shared<Recalled>(memories, how), "1", 0};
  auto stream = engine->generate(std::move(request));
  int tokens = 0;
  Event event;
  do {
    event = stream.next();
    tokens += event.token.has_value();
    if (tokens == 3) {
      stream.cancel();
    }
  } while (event.finish == Finish::none);
  REQUIRE(event.whole_use);
  CHECK(event.whole_use->queries == tokens);
}

TEST_CASE("recall: contiguous memories are part of the context") {
  auto engine = recalling_engine();
  Request request;
  request.prompt = {1, 5, 9};
  request.max_tokens = 8;
  request.recall = {nullptr, "", 54};
  CHECK_THROWS_AS(engine->generate(request), Error);
  request.recall.before = 53;
  auto stream = engine->generate(request);
  CHECK(read_all(stream).ids.size() == 8);
}

} // namespace parallm::test
