// Memories through the engine: rows with different ones, and none, in one batch and with a shared prefix cache, each
// make the tokens of the Extended Mind reference.
#include "golden.h"

#include "engine/engine.h"
#include "engine/reader.h"
#include "engine/runner.h"

#include <boost/json.hpp>

#include <fstream>

namespace parallm::test {

namespace {

using Ids = std::vector<int32_t>;

Ids tokens_of(const boost::json::value& value) {
  return boost::json::value_to<Ids>(value);
}

std::unique_ptr<Engine> recalling_engine() {
  EngineOptions options;
  options.max_rows = 8;
  options.block_size = 4;
  options.blocks = 128;
  options.memories = true;
  options.prefill_tokens = options.mixed_tokens = 5;
  options.max_context = 64;
  return std::make_unique<Engine>(options, [](EngineOptions& completed) {
    Checkpoint checkpoint = open_checkpoint("tests/golden/extended_mind/gqa", {.dtype = mx::float32});
    auto model = make_model(checkpoint.config, checkpoint.weights);
    completed.vocabulary = model->vocabulary();
    const auto specs = model->cache_specs();
    auto caches = make_paged_caches(specs, {.block_size = 4, .blocks = 128, .slots = 8, .dtype = mx::float32});
    return std::make_unique<ModelRunner>(
        std::move(model), make_recall_caches(std::move(caches), static_cast<int>(specs.size())), completed.max_rows);
  });
}

struct Made {
  Ids ids;
  int cached = 0;
};

Made read_all(Stream& stream) {
  Made made;
  while (true) {
    Event event = stream.next();
    REQUIRE(!event.error);
    if (event.token) {
      made.ids.push_back(event.token->token.id);
    }
    made.cached = event.cached_tokens;
    if (event.finish != Finish::none) {
      return made;
    }
  }
}

} // namespace

TEST_CASE("recall: rows of one engine make the reference's tokens, whatever memories their neighbours have") {
  std::ifstream file("tests/golden/extended_mind/cases.json");
  const auto all = boost::json::parse(file).as_object();
  auto engine = recalling_engine();
  std::shared_ptr<const Memory> memory;
  engine
      ->run([&](Runner& runner) {
        ReadHow how{.dropped = tokens_of(all.at("special"))};
        Reader reader(dynamic_cast<ModelRunner&>(runner).model(), mx::float32, tokens_of(all.at("memory")), how);
        while (!memory) {
          memory = reader.step();
        }
      })
      .get();
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
