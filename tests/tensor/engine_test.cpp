// The engine over tiny real models: a row's tokens are the reference's, and the same alone, in company, in chunks, on a
// prefix hit and after a preemption.
#include "golden.h"

#include "engine/engine.h"
#include "engine/runner.h"
#include "engine/warm_up.h"

#include <random>

namespace parallm::test {

namespace {

EngineOptions small_engine() {
  EngineOptions options;
  options.max_rows = 8;
  options.max_waiting = 64;
  options.block_size = 4;
  options.blocks = 256;
  options.prefill_tokens = 512;
  options.mixed_tokens = 512;
  options.max_context = 256;
  return options;
}

/** `draft`: the golden model that guesses, where the options say that one does. */
std::unique_ptr<Engine> engine_of(
    const std::string& name,
    const EngineOptions& options,
    bool warm = false,
    const std::string& draft = {},
    int kv_bits = 0) {
  return std::make_unique<Engine>(options, [&](EngineOptions& completed) {
    const auto open = [](const std::string& named) {
      auto file = golden_folder / named / "model.gguf";
      auto path = std::filesystem::exists(file) ? file : golden_folder / named;
      return open_checkpoint(path.string(), {.dtype = mx::float32});
    };
    Checkpoint checkpoint = open(name);
    auto model = make_model(checkpoint.config, checkpoint.weights);
    completed.vocabulary = model->vocabulary();
    completed.own_kv_past = model->own_kv_past();
    auto specs = model->cache_specs();
    completed.prefix_cache = completed.prefix_cache && state_bytes(specs) == 0;
    KVOptions kv{
        .block_size = completed.block_size,
        .blocks = completed.blocks,
        .slots = completed.max_rows,
        .dtype = checkpoint.kv_dtype,
        .bits = kv_bits};
    std::unique_ptr<Drafter> drafter;
    if (completed.draft_model) {
      Checkpoint small = open(draft);
      auto guesses = make_model(small.config, small.weights);
      auto own = make_paged_caches(guesses->cache_specs(), kv);
      drafter = std::make_unique<Drafter>(std::move(guesses), std::move(own));
    }
    auto runner = std::make_unique<ModelRunner>(
        std::move(model), make_paged_caches(specs, kv), completed.max_rows, std::move(drafter));
    if (warm) {
      warm_up(*runner, completed);
    }
    return runner;
  });
}

Request greedy(std::vector<int32_t> prompt, int max_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling.temperature = 0;
  return request;
}

struct Made {
  std::vector<int32_t> ids;
  int cached = 0;
};

Made read(Stream& stream) {
  Made made;
  while (true) {
    Event event = stream.next();
    if (event.error) {
      FAIL(event.error->what());
    }
    if (event.token) {
      made.ids.push_back(event.token->token.id);
    }
    made.cached = event.cached_tokens;
    if (event.finish != Finish::none) {
      return made;
    }
  }
}

/** Prompts of different lengths; some begin alike. */
std::vector<std::vector<int32_t>> prompts(int vocabulary) {
  std::mt19937 random(11);
  std::vector<int32_t> beginning(21);
  for (int32_t& id : beginning) {
    id = static_cast<int32_t>(random() % vocabulary);
  }
  std::vector<std::vector<int32_t>> all;
  for (int length : {1, 3, 40, 17, 5, 64, 29, 2, 33, 12}) {
    std::vector<int32_t> prompt;
    if (all.size() % 3 == 2) {
      prompt = beginning;
    }
    while (static_cast<int>(prompt.size()) < length) {
      prompt.push_back(static_cast<int32_t>(random() % vocabulary));
    }
    all.push_back(prompt);
  }
  return all;
}

constexpr int wanted_tokens = 24;

std::vector<std::vector<int32_t>> one_by_one(const std::string& name, const std::vector<std::vector<int32_t>>& all) {
  auto options = small_engine();
  options.prefix_cache = false;
  auto engine = engine_of(name, options);
  std::vector<std::vector<int32_t>> made;
  for (const auto& prompt : all) {
    auto stream = engine->generate(greedy(prompt, wanted_tokens));
    made.push_back(read(stream).ids);
    REQUIRE(made.back().size() == wanted_tokens);
  }
  return made;
}

void together(
    const std::string& name,
    const EngineOptions& options,
    const std::vector<std::vector<int32_t>>& all,
    const std::vector<std::vector<int32_t>>& expected,
    bool preempts) {
  auto engine = engine_of(name, options);
  std::vector<Stream> streams;
  for (const auto& prompt : all) {
    streams.push_back(engine->generate(greedy(prompt, wanted_tokens)));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    CAPTURE(i);
    CHECK(read(streams[i]).ids == expected[i]);
  }
  CHECK((engine->stats().preemptions > 0) == preempts);
}

const std::vector<std::string> models =
    {"llama_mha", "llama", "mistral", "llama_rope_yarn", "llama_rope_dynamic", "llama_quantized_4"};
// Whose layers, some or all, keep states.
const std::vector<std::string> recurrent_models =
    {"lfm2", "mamba2", "jamba", "qwen3_next", "granitemoehybrid", "qwen3_5-4bit"};

std::vector<std::string> all_models() {
  auto all = models;
  all.insert(all.end(), recurrent_models.begin(), recurrent_models.end());
  return all;
}

} // namespace

TEST_CASE("engine: the first tokens are the reference's most likely ones") {
  for (const auto& name : all_models()) {
    CAPTURE(name);
    auto engine = engine_of(name, small_engine());
    for (const auto& sequence : references(name)) {
      // The recorded continuation is given as prompt, one token more each
      // time; "dynamic" RoPE would turn a longer prompt by another base.
      auto logits = floats(sequence.logits);
      const size_t width = logits.size() / sequence.logits.shape(0);
      const int longest = name == "llama_rope_dynamic" ? 1 : sequence.logits.shape(0);
      for (int i = 0; i < longest; ++i) {
        std::vector<int32_t> prompt(sequence.tokens.begin(), sequence.tokens.begin() + sequence.prompt + i);
        auto stream = engine->generate(greedy(prompt, 1));
        const auto row = logits.begin() + i * width;
        const int32_t best = static_cast<int32_t>(std::max_element(row, row + width) - row);
        CHECK(read(stream).ids == std::vector<int32_t>{best});
      }
    }
  }
}

TEST_CASE("engine: tokens don't depend on company, chunks or preemption") {
  for (const auto& name : all_models()) {
    CAPTURE(name);
    const auto all = prompts(90);
    const auto expected = one_by_one(name, all);
    auto options = small_engine();
    together(name, options, all, expected, false);
    options.prefill_tokens = 5;
    options.mixed_tokens = 3;
    together(name, options, all, expected, false);
    options.max_rows = 2;
    together(name, options, all, expected, false);
    options.max_rows = 8;
    options.blocks = 26; // the longest row alone takes 22
    together(name, options, all, expected, true);
  }
}

TEST_CASE("engine: warming up changes no token") {
  auto request = greedy(prompts(90)[2], wanted_tokens);
  request.sampling.repetition_penalty = 1.3f; // a slot's counts are its own request's
  for (auto* name : {"llama_mha", "mamba2", "qwen3_next"}) { // a slot's states too
    CAPTURE(name);
    auto cold = engine_of(name, small_engine());
    auto warm = engine_of(name, small_engine(), true);
    auto expected = cold->generate(request);
    auto got = warm->generate(request);
    CHECK(read(got).ids == read(expected).ids);
  }
}

TEST_CASE("engine: a prefix hit changes no token") {
  for (const auto& name : models) {
    CAPTURE(name);
    const auto all = prompts(90);
    const auto expected = one_by_one(name, all);
    auto engine = engine_of(name, small_engine());
    for (int round = 0; round < 2; ++round) {
      for (size_t i = 0; i < all.size(); ++i) {
        auto stream = engine->generate(greedy(all[i], wanted_tokens));
        const Made made = read(stream);
        CHECK(made.ids == expected[i]);
        if (round == 1) {
          // All whole blocks but the one with the last token.
          CHECK(made.cached == (static_cast<int>(all[i].size()) - 1) / 4 * 4);
        }
      }
    }
    // Equal prompts at once share the first one's blocks while it is read.
    auto fresh = engine_of(name, small_engine());
    std::vector<Stream> streams;
    for (int i = 0; i < 4; ++i) {
      streams.push_back(fresh->generate(greedy(all[5], wanted_tokens)));
    }
    for (auto& stream : streams) {
      CHECK(read(stream).ids == expected[5]);
    }
    CHECK(fresh->stats().cached_tokens == 3 * 60);
  }
}

TEST_CASE("engine: a seed gives the same tokens in any company") {
  const auto all = prompts(90);
  const auto ask = [](const std::vector<int32_t>& prompt, uint64_t seed) {
    Request request = greedy(prompt, wanted_tokens);
    request.sampling.temperature = 1.3f;
    request.sampling.top_p = 0.9f;
    request.sampling.seed = seed;
    request.sampling.frequency_penalty = seed % 2 ? 0.5f : 0.0f;
    return request;
  };
  auto engine = engine_of("llama", small_engine());
  std::vector<std::vector<int32_t>> expected;
  for (size_t i = 0; i < all.size(); ++i) {
    auto stream = engine->generate(ask(all[i], i));
    expected.push_back(read(stream).ids);
  }
  auto options = small_engine();
  options.blocks = 26;
  auto crowded = engine_of("llama", options);
  std::vector<Stream> streams;
  for (size_t i = 0; i < all.size(); ++i) {
    streams.push_back(crowded->generate(ask(all[i], i)));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    CAPTURE(i);
    CHECK(read(streams[i]).ids == expected[i]);
  }
  CHECK(crowded->stats().preemptions > 0);
  auto other = engine->generate(ask(all[5], 1000));
  CHECK(read(other).ids != expected[5]);
}

TEST_CASE("engine: with keys in codes, too, tokens don't depend on company, chunks, prefix hits or preemption") {
  const auto all = prompts(90);
  for (int bits : {8, 4}) {
    CAPTURE(bits);
    auto options = small_engine();
    auto engine = engine_of("llama_head_dim", options, false, {}, bits);
    std::vector<std::vector<int32_t>> expected;
    for (const auto& prompt : all) {
      auto stream = engine->generate(greedy(prompt, wanted_tokens));
      expected.push_back(read(stream).ids);
    }
    options.prefill_tokens = 6;
    options.blocks = 26;
    auto crowded = engine_of("llama_head_dim", options, false, {}, bits);
    for (int round = 0; round < 2; ++round) {
      std::vector<Stream> streams;
      for (const auto& prompt : all) {
        streams.push_back(crowded->generate(greedy(prompt, wanted_tokens)));
      }
      for (size_t i = 0; i < all.size(); ++i) {
        CAPTURE(i);
        CHECK(read(streams[i]).ids == expected[i]);
      }
    }
    CHECK(crowded->stats().preemptions > 0);
    CHECK(crowded->stats().prefix_hits > 0);
  }
}

TEST_CASE("engine: guesses change no token, whoever makes them") {
  const auto all = prompts(90);
  const auto ask = [](const std::vector<int32_t>& prompt, size_t i) {
    Request request = greedy(prompt, wanted_tokens);
    if (i % 2) {
      request.sampling.temperature = 0.7f;
      request.sampling.top_p = 0.9f;
      request.sampling.seed = i;
    }
    if (i % 3 == 0) {
      request.sampling.repetition_penalty = 1.2f;
      request.sampling.frequency_penalty = 0.1f;
    }
    request.sampling.logprobs = i % 4 == 0 ? 2 : -1;
    request.sampling.min_tokens = i % 5;
    return request;
  };
  const auto run = [&](Engine& engine) {
    std::vector<Stream> streams;
    for (size_t i = 0; i < all.size(); ++i) {
      streams.push_back(engine.generate(ask(all[i], i)));
    }
    std::vector<std::pair<std::vector<int32_t>, std::vector<float>>> made(all.size());
    for (size_t i = 0; i < all.size(); ++i) {
      Event event;
      do {
        event = streams[i].next();
        REQUIRE(event.token);
        made[i].first.push_back(event.token->token.id);
        made[i].second.push_back(event.token->token.logprob);
        for (auto& top : event.token->top) {
          made[i].second.push_back(top.logprob);
        }
      } while (event.finish == Finish::none);
    }
    return made;
  };
  // The same bits, but for the log-probabilities on a GPU, where MLX's sums of float32 depend on the number of rows.
  const auto check_same = [](const auto& got, const auto& expected) {
    for (size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(i);
      CHECK(got[i].first == expected[i].first);
      REQUIRE(got[i].second.size() == expected[i].second.size());
      for (size_t j = 0; j < expected[i].second.size(); ++j) {
        const float wanted = expected[i].second[j];
        CHECK(std::abs(got[i].second[j] - wanted) <= (on_cpu() ? 0.0f : 1e-3f * std::max(1.0f, std::abs(wanted))));
      }
    }
  };
  uint64_t looked_up = 0, drafted = 0;
  for (const auto& name : models) {
    CAPTURE(name);
    const auto expected = run(*engine_of(name, small_engine()));
    // The text; the model itself, nearly always right; its like; a stranger.
    for (auto* draft : {"", name.c_str(), "llama_quantized_4", "llama_mha"}) {
      CAPTURE(draft);
      auto options = small_engine();
      options.guesses = 4;
      options.draft_model = *draft != 0;
      auto engine = engine_of(name, options, false, draft);
      check_same(run(*engine), expected);
      const auto stats = engine->stats();
      (options.draft_model ? drafted : looked_up) += stats.right_guesses;
      if (name == draft) { // but where a penalty or min_tokens, which it doesn't know, had a say
        CHECK(stats.right_guesses > stats.guessed_tokens / 2);
      }
      options.blocks = 26;
      options.prefill_tokens = 6;
      auto crowded = engine_of(name, options, true, draft);
      check_same(run(*crowded), expected);
      CHECK(crowded->stats().preemptions > 0);
      check_same(run(*crowded), expected); // on prefix hits
    }
  }
  CHECK(looked_up > 20);
  CHECK(drafted > 500);
}

TEST_CASE("engine: prompt_logprobs are the reference's") {
  for (const auto& name : all_models()) {
    if (name == "llama_rope_dynamic") {
      continue; // the reference's continuation was no prompt
    }
    CAPTURE(name);
    auto options = small_engine();
    options.prefill_tokens = 7;
    auto engine = engine_of(name, options);
    for (const auto& sequence : references(name)) {
      Request request = greedy({sequence.tokens.begin(), sequence.tokens.end()}, 0);
      request.sampling.prompt_logprobs = true;
      auto stream = engine->generate(request);
      Event event = stream.next();
      REQUIRE(event.prompt.size() == sequence.tokens.size() - 1);
      auto logits = floats(sequence.logits);
      const size_t width = logits.size() / sequence.logits.shape(0);
      for (size_t i = sequence.prompt; i < sequence.tokens.size(); ++i) {
        const float* row = &logits[(i - sequence.prompt) * width];
        double sum = 0;
        for (size_t v = 0; v < width; ++v) {
          sum += std::exp(double(row[v]));
        }
        CHECK(
            event.prompt[i - 1].token.logprob ==
            doctest::Approx(row[sequence.tokens[i]] - std::log(sum)).epsilon(1e-3));
      }
    }
  }
}

} // namespace parallm::test
