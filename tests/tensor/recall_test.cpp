// Extended Mind attention: the reference's numbers, and what must be equal whatever the numbers are.
#include "each_target.h"
#include "recalling.h"

#include "kernels/cpu/ops.h"

namespace parallm::test {

namespace {

double greatest_difference(const Logits& a, const Logits& b) {
  REQUIRE(a.size() == b.size());
  double worst = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < a[i].size(); ++j) {
      const double d = std::abs(double(a[i][j]) - b[i][j]);
      worst = std::isnan(d) ? 1e9 : std::max(worst, d);
    }
  }
  return worst;
}

/** Relative to the greatest logit of b. */
double relative(const Logits& a, const Logits& b) {
  double scale = 0;
  for (auto& row : b) {
    for (float x : row) {
      scale = std::max(scale, std::abs(double(x)));
    }
  }
  return greatest_difference(a, b) / scale;
}

Logits rows_of(const mx::array& x) {
  auto all = floats(x);
  Logits out;
  for (int i = 0; i < x.shape(0); ++i) {
    out.emplace_back(all.begin() + i * x.shape(1), all.begin() + (i + 1) * x.shape(1));
  }
  return out;
}

int best(const std::vector<float>& logits) {
  return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

/** Whether every layer of the model sees all that came before, and its positions lie in the cache: contiguous memories
 * are then a text in the prompt. */
bool sees_all(Recalling& model, const Memory& memory) {
  return std::all_of(memory.layers.begin(), memory.layers.end(), [](auto& layer) { return layer.has_value(); }) &&
      model.loaded.model->own_kv_past() == 0;
}

/** Golden models that take memories, float weights alone. */
template <class F>
int each_model(const F& run) {
  int ran = 0;
  for (auto& name : golden_names()) {
    auto path = golden_folder / name;
    if (!std::filesystem::is_directory(path) || std::filesystem::exists(path / "model.gguf") ||
        name.find("bit") != std::string::npos || name.find("_hf") != std::string::npos) {
      continue;
    }
    CAPTURE(name);
    Recalling model(path.string());
    if (!why_no_memories(model.loaded.model->cache_specs()).empty()) {
      continue;
    }
    auto tokens = references(name)[0].tokens;
    tokens.resize(std::min<size_t>(tokens.size(), 24));
    const std::vector<int> text(tokens.begin(), tokens.begin() + tokens.size() / 2);
    const std::vector<int> prompt(tokens.begin() + tokens.size() / 2, tokens.end());
    std::shared_ptr<const Memory> memory;
    try {
      memory = model.read(text);
    } catch (const Error& error) {
      CHECK(std::string(error.what()).find("takes no memories") != std::string::npos);
      continue;
    }
    run(name, model, *memory, memory, text, prompt);
    ++ran;
  }
  return ran;
}

} // namespace

TEST_CASE("recall: the reference's logits, tokens, and memories") {
  const auto file = cases();
  auto arrays = mx::load_safetensors((fixtures / "reference.safetensors").string()).first;
  const auto prompt = numbers(file.at("prompt")), text = numbers(file.at("memory"));
  ReadHow how;
  for (int id : numbers(file.at("special"))) {
    how.dropped.push_back(id);
  }
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    int index = 0;
    for (auto& entry : file.at("cases").as_array()) {
      auto& wanted = entry.as_object();
      const std::string name(wanted.at("model").as_string());
      CAPTURE(mlx_ops);
      CAPTURE(index);
      Recalling model((fixtures / name).string());
      auto memory = model.read(text, how);
      RecallHow recall{.top_k = wanted.at("top_k").to_number<int>(), .threshold = {}, .layers = {}};
      for (auto& layer : wanted.at("layers").as_array()) {
        recall.layers.push_back(layer.as_bool());
      }
      if (!wanted.at("threshold").is_null()) {
        recall.threshold = wanted.at("threshold").to_number<float>();
      }
      auto memories = recalled({memory}, recall);
      auto logits = run(model, {{prompt, 0, memories}});
      CHECK(greatest_difference(logits, rows_of(arrays.at(fmt::format("logits.{}", index)))) < 1e-4);
      // In chunks, then token by token.
      auto first = run(model, {{{prompt.begin(), prompt.begin() + 5}, 0, memories, 30}});
      auto rest = run(model, {{{prompt.begin() + 5, prompt.end()}, 5, memories, 30}});
      first.insert(first.end(), rest.begin(), rest.end());
      CHECK(greatest_difference(first, logits) < 1e-4);
      std::vector<int> next{best(logits.back())};
      while (next.size() < 8) {
        const int at = prompt.size() + next.size() - 1;
        next.push_back(best(run(model, {{{next.back()}, at, memories}}).back()));
      }
      CHECK(next == numbers(wanted.at("next")));
      for (int layer = 0; layer < 3; ++layer) {
        auto key = fmt::format("{}.memory.k.{}", name, layer), value = fmt::format("{}.memory.v.{}", name, layer);
        REQUIRE(arrays.contains(key));
        CHECK(mx::allclose(memory->layers[layer]->keys.data, arrays.at(key), 1e-4, 1e-4).item<bool>());
        CHECK(mx::allclose(memory->layers[layer]->values.data, arrays.at(value), 1e-4, 1e-4).item<bool>());
      }
      ++index;
    }
    CHECK(index == 18);
  }
}

TEST_CASE("recall: long texts are read in the reference's windows, whatever the steps") {
  const auto file = cases();
  auto arrays = mx::load_safetensors((fixtures / "reference.safetensors").string()).first;
  for (int chunk : {256, 5}) {
    for (std::string name : {"mha", "gqa"}) {
      Recalling model((fixtures / name).string());
      auto memory =
          model.read(numbers(file.at("memory")), {.stride = 8, .max_length = 16, .chunk = chunk, .dropped = {}});
      for (int layer = 0; layer < 3; ++layer) {
        auto key = arrays.at(fmt::format("{}.window.k.{}", name, layer));
        auto value = arrays.at(fmt::format("{}.window.v.{}", name, layer));
        CHECK(mx::allclose(memory->layers[layer]->keys.data, key, 1e-4, 1e-4).item<bool>());
        CHECK(mx::allclose(memory->layers[layer]->values.data, value, 1e-4, 1e-4).item<bool>());
      }
    }
  }
}

TEST_CASE("recall: on every architecture with RoPE") {
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    int whole = 0;
    const int ran = each_model([&](auto& name, auto& model, auto& memory, auto shared, auto& text, auto& prompt) {
      CAPTURE(mlx_ops);
      const auto plain = run(model, {{prompt, 0, nullptr}});
      CHECK(run(model, {{prompt, 0, recalled({shared}, {.top_k = 0})}}) == plain);
      const auto zero = run(model, {{prompt, 0, recalled({shared}, {.top_k = 3})}});
      CHECK(relative(zero, plain) > 1e-4); // memories change something
      // All of several texts' memories, in any order.
      auto other = model.read({text.rbegin(), text.rend()});
      auto both = run(model, {{prompt, 0, recalled({shared, other}, {.top_k = 1000})}});
      auto turned = run(model, {{prompt, 0, recalled({other, shared}, {.top_k = 1000})}});
      CHECK(relative(both, turned) < 2e-4);
      // Rows with different memories and without, beside each other: as alone.
      auto mixed =
          run(model,
              {{prompt, 0, recalled({shared}, {.top_k = 3}), 0},
               {prompt, 0, nullptr, 24},
               {prompt, 0, recalled({shared, other}, {.top_k = 1000}), 48}});
      const auto part = [&](int i) {
        const size_t n = prompt.size();
        return Logits(mixed.begin() + i * n, mixed.begin() + (i + 1) * n);
      };
      CHECK(relative(part(0), zero) < 1e-4);
      CHECK(relative(part(1), plain) < 1e-4);
      CHECK(relative(part(2), both) < 1e-4);
      if (!mlx_ops && on_cpu()) {
        CHECK(part(1) == plain);
        CHECK(part(0) == zero);
        CHECK(part(2) == both);
      }
      if (sees_all(model, memory)) {
        auto joined = text;
        joined.insert(joined.end(), prompt.begin(), prompt.end());
        auto wanted = run(model, {{joined, 0, nullptr}});
        wanted.erase(wanted.begin(), wanted.begin() + text.size());
        auto got = run(model, {{prompt, 0, recalled({shared}, {.top_k = 1000, .contiguous = true})}});
        CAPTURE(name);
        CHECK(relative(got, wanted) < 2e-4);
        ++whole;
      }
    });
    CHECK(ran > 10);
    CHECK(whole > 10);
    MESSAGE(ran, " models, ", whole, " of them as a text in the prompt");
  }
}

TEST_CASE("recall: 16-bit activations give numbers near float32's") {
  const auto file = cases();
  const auto prompt = numbers(file.at("prompt")), text = numbers(file.at("memory"));
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    Recalling wide((fixtures / "gqa").string());
    auto wanted = run(wide, {{prompt, 0, recalled({wide.read(text)}, {.top_k = 1000})}});
    for (auto dtype : {mx::float16, mx::bfloat16}) {
      Recalling model((fixtures / "gqa").string(), dtype);
      auto memory = model.read(text);
      for (int top_k : {1, 4, 1000}) {
        auto got = run(model, {{prompt, 0, recalled({memory}, {.top_k = top_k})}});
        CHECK(relative(got, got) == 0); // NaN differs from itself
        if (top_k == 1000) {
          CHECK(relative(got, wanted) < (dtype == mx::float16 ? 0.02 : 0.15));
        }
      }
    }
  }
}

TEST_CASE("recall: the kernel takes the same memories as a sort, of many") {
  if (!on_cpu()) {
    return;
  }
  const int tokens = 5, heads = 6, groups = 2, count = 3000, dim = 24, v_dim = 20;
  auto q = mx::random::normal({tokens, heads, dim});
  auto keys = mx::random::normal({groups, count, dim}) * mx::random::uniform({groups, count, 1});
  auto values = mx::random::normal({groups, count, v_dim});
  auto norms = mx::array(1.0f) / mx::sqrt(mx::sum(mx::square(keys), -1));
  auto local = mx::random::normal({tokens, heads, v_dim});
  auto masses = mx::random::normal({tokens, heads});
  for (bool by_dot : {false, true}) {
    for (int top_k : {1, 16, 700, 5000}) {
      const cpu::RecallShape shape{top_k, 0.2f, 0, by_dot, {}};
      auto got = floats(cpu::recall(q, keys, norms, values, local, masses, shape));
      auto wide = mx::repeat(keys, heads / groups, 0), lengths = mx::repeat(norms, heads / groups, 0);
      auto products = mx::matmul(mx::swapaxes(q, 0, 1), mx::swapaxes(wide, 1, 2)); // [H,T,N]
      auto ranks = by_dot ? products : products * mx::expand_dims(lengths, 1);
      const int top = std::min(top_k, count);
      auto sorted = mx::sort(-ranks, -1);
      auto least = mx::slice(sorted, {0, 0, top - 1}, {heads, tokens, top});
      // Where the next one is as near as rounding, either may be taken.
      auto next = mx::slice(sorted, {0, 0, std::min(top, count - 1)}, {heads, tokens, std::min(top, count - 1) + 1});
      auto gaps = floats(mx::swapaxes(next - least, 0, 1)); // [T,H]
      auto kept = mx::less_equal(-ranks, least);
      auto scores = mx::where(kept, products * 0.2f, mx::array(-INFINITY));
      auto own = mx::expand_dims(mx::swapaxes(masses, 0, 1), 2);
      auto weights = mx::softmax(mx::concatenate({own, scores}, -1), -1, true);
      auto first = mx::slice(weights, {0, 0, 0}, {heads, tokens, 1});
      auto rest = mx::slice(weights, {0, 0, 1}, {heads, tokens, count + 1});
      auto sum = first * mx::swapaxes(local, 0, 1) + mx::matmul(rest, mx::repeat(values, heads / groups, 0));
      auto wanted = floats(mx::swapaxes(sum, 0, 1));
      double worst = 0;
      size_t compared = 0;
      for (size_t i = 0; i < wanted.size(); ++i) {
        if (top == count || gaps[i / v_dim] > 1e-5) {
          worst = std::max(worst, std::abs(double(got[i]) - wanted[i]));
          ++compared;
        }
      }
      CHECK(worst < 1e-4);
      CHECK(compared > wanted.size() / 2);
    }
  }
}

TEST_CASE("recall: whole blocks, beside a plain sum, by codes and without, with each instruction set") {
  if (!on_cpu()) {
    return;
  }
  for_each_target([&] {
    const int tokens = 3, heads = 6, groups = 2, count = 2500, dim = 10, v_dim = 5;
    auto keys = mx::random::normal({groups, count, dim}), values = mx::random::normal({groups, count, v_dim});
    auto norms = mx::array(1.0f) / mx::sqrt(mx::sum(mx::square(keys), -1));
    auto q = mx::random::normal({tokens, heads, dim}), local = mx::random::normal({tokens, heads, v_dim});
    auto masses = mx::random::normal({tokens, heads});
    const auto codes = cpu::recall_codes(keys, norms);
    const auto k = floats(keys), v = floats(values), n = floats(norms), qs = floats(q), own = floats(local);
    const auto mass = floats(masses);
    const auto starts = std::make_shared<const std::vector<int32_t>>(std::vector<int32_t>{0, 1, 38, 1000, 2499});
    for (int block : {2, 7, 64}) {
      for (int top_k : {1, 5, 3000}) {
        for (std::optional<float> threshold : {std::optional<float>(), std::optional<float>(0.7f)}) {
          const cpu::RecallShape shape{top_k, 0.2f, 0, false, threshold, block, starts};
          const auto got = floats(cpu::recall(q, keys, norms, values, local, masses, shape));
          CHECK(floats(cpu::recall(q, keys, norms, values, local, masses, shape, nullptr, &codes)) == got);
          double worst = 0;
          for (int row = 0; row < tokens * heads; ++row) {
            const int g = row % heads / (heads / groups);
            std::vector<double> products(count), cosines(count);
            double squares = 0;
            for (int d = 0; d < dim; ++d) {
              squares += std::pow(qs[row * dim + d], 2);
            }
            std::vector<int> order(count);
            for (int i = 0; i < count; ++i) {
              order[i] = i;
              for (int d = 0; d < dim; ++d) {
                products[i] += double(qs[row * dim + d]) * k[(size_t(g) * count + i) * dim + d];
              }
              cosines[i] = products[i] * n[g * count + i] / std::sqrt(squares);
            }
            std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return cosines[a] > cosines[b]; });
            order.resize(std::min(top_k, count));
            std::vector<bool> taken(count);
            for (int hit : order) {
              const auto next = std::upper_bound(starts->begin(), starts->end(), hit);
              const int first = *(next - 1), end = next == starts->end() ? count : *next;
              const int begin = first + (hit - first) / block * block;
              for (int i = begin; i < std::min(begin + block, end) && !(threshold && cosines[hit] <= *threshold); ++i) {
                taken[i] = true;
              }
            }
            double total = std::exp(double(mass[row]));
            std::vector<double> sums(v_dim);
            for (int d = 0; d < v_dim; ++d) {
              sums[d] = total * own[row * v_dim + d];
            }
            for (int i = 0; i < count; ++i) {
              const double weight = taken[i] ? std::exp(0.2 * products[i]) : 0;
              total += weight;
              for (int d = 0; d < v_dim; ++d) {
                sums[d] += weight * v[(size_t(g) * count + i) * v_dim + d];
              }
            }
            for (int d = 0; d < v_dim; ++d) {
              worst = std::max(worst, std::abs(sums[d] / total - got[row * v_dim + d]));
            }
          }
          CHECK(worst < 1e-4);
        }
      }
    }
  });
}

TEST_CASE("recall: rows with blocks of several sizes and none are as alone") {
  const auto file = cases();
  const auto prompt = numbers(file.at("prompt")), text = numbers(file.at("memory"));
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    Recalling model((fixtures / "gqa").string());
    auto memory = model.read(text);
    std::vector<Row> rows;
    std::vector<Logits> alone;
    for (int block : {1, 3, 64}) {
      rows.push_back(
          {prompt, 0, recalled({memory, memory}, {.top_k = 2, .block_tokens = block}), 24 * int(rows.size())});
      alone.push_back(run(model, {{prompt, 0, rows.back().memories}}));
    }
    CHECK(relative(alone[0], alone[1]) > 1e-4);
    CHECK(relative(alone[1], alone[2]) > 1e-4);
    const auto mixed = run(model, rows);
    for (size_t r = 0; r < rows.size(); ++r) {
      const Logits part(mixed.begin() + r * prompt.size(), mixed.begin() + (r + 1) * prompt.size());
      CHECK(relative(part, alone[r]) < 1e-4);
      CHECK((mlx_ops || !on_cpu() || part == alone[r]));
    }
  }
}

TEST_CASE("recall: by codes the kernel gives the same numbers, bit for bit, with each instruction set") {
  if (!on_cpu()) {
    return;
  }
  for_each_target([&] {
    const int tokens = 3, heads = 6, groups = 2;
    for (int dim : {64, 24, 10}) {
      for (int kind : {0, 1, 2, 3}) {
        for (int count : {200, 2048, 5000}) {
          CAPTURE(dim);
          CAPTURE(kind);
          CAPTURE(count);
          auto keys = mx::random::normal({groups, count, dim});
          if (kind == 1) { // most of a key is what all have
            keys = keys * mx::array(0.05f) + mx::random::normal({groups, 1, dim});
          } else if (kind == 2) { // many are the same, some are zero, one is large
            keys = mx::take(keys, mx::astype(mx::random::randint(0, 20, {count}), mx::int32), 1);
            keys = mx::where(mx::greater(mx::random::uniform({1, count, 1}), mx::array(0.9f)), mx::array(0.0f), keys);
            keys =
                mx::slice_update(keys, mx::full({groups, 1, dim}, 3e4f), mx::Shape{0, 7, 0}, mx::Shape{groups, 8, dim});
          } else if (kind == 3) {
            keys = mx::astype(keys, mx::float16);
          }
          auto values = mx::astype(mx::random::normal({groups, count, 20}), keys.dtype());
          auto wide = mx::astype(keys, mx::float32);
          auto norms = mx::array(1.0f) / mx::maximum(mx::sqrt(mx::sum(mx::square(wide), -1)), mx::array(1e-12f));
          auto q = mx::concatenate({mx::random::normal({tokens - 1, heads, dim}), mx::zeros({1, heads, dim})}, 0);
          auto local = mx::random::normal({tokens, heads, 20}), masses = mx::random::normal({tokens, heads});
          const auto codes = cpu::recall_codes(keys, norms);
          for (int top_k : {1, 2, 16, 30}) {
            CAPTURE(top_k);
            for (std::optional<float> threshold : {std::optional<float>(), std::optional<float>(0.2f)}) {
              const cpu::RecallShape shape{top_k, 0.2f, 0, false, threshold};
              auto record = mx::zeros({tokens, 3, count}), coded_record = mx::zeros({tokens, 3, count});
              auto wanted = cpu::recall(q, keys, norms, values, local, masses, shape, &record);
              auto got = cpu::recall(q, keys, norms, values, local, masses, shape, &coded_record, &codes);
              CHECK(floats(got) == floats(wanted));
              CHECK(floats(coded_record) == floats(record));
            }
          }
        }
      }
    }
  });
}

TEST_CASE("recall: memories in codes give what the floats that they stand for give, with each instruction set") {
  if (!on_cpu()) {
    return;
  }
  for_each_target([&] {
    const int tokens = 3, heads = 6, groups = 2;
    for (auto [dim, v_dim] : {std::pair{64, 32}, {96, 64}, {128, 128}}) {
      for (int count : {40, 5000}) {
        CAPTURE(dim);
        CAPTURE(count);
        auto large = mx::where(mx::equal(mx::arange(dim), mx::array(5)), mx::array(20.0f), mx::array(1.0f));
        const auto keys = cpu::RecallRows::coded(mx::random::normal({groups, count, dim}) * large + mx::array(0.5f));
        const auto values = cpu::RecallRows::coded(mx::random::normal({groups, count, v_dim}));
        REQUIRE(keys.is_coded());
        CHECK(keys.shape(2) == dim);
        auto norms = mx::array(1.0f) / mx::sqrt(mx::sum(mx::square(keys.floats()), -1));
        auto q = mx::random::normal({tokens, heads, dim});
        auto local = mx::random::normal({tokens, heads, v_dim}), masses = mx::random::normal({tokens, heads});
        const auto codes = cpu::recall_codes(keys.floats(), norms);
        for (int top_k : {1, 16, 24, 5000}) {
          for (bool by_dot : {false, true}) {
            CAPTURE(top_k);
            const auto starts = std::make_shared<const std::vector<int32_t>>(std::vector<int32_t>{0, 17});
            const cpu::RecallShape shape{top_k, 0.2f, 0, by_dot, {}, top_k == 16 ? 7 : 1, starts};
            const auto none = [&] { return mx::zeros({tokens, 3, count}); };
            auto own = none(), first = none(), wanted_record = none();
            auto got = cpu::recall(q, keys, norms, values, local, masses, shape, &own);
            auto by_codes = cpu::recall(q, keys, norms, values, local, masses, shape, &first, &codes);
            CHECK(floats(by_codes) == floats(got));
            CHECK(floats(first) == floats(own));
            auto wanted = cpu::recall(q, keys.floats(), norms, values.floats(), local, masses, shape, &wanted_record);
            CHECK(mx::max(mx::abs(got - wanted)).item<float>() < 2e-5);
            CHECK(mx::max(mx::abs(own - wanted_record)).item<float>() < 2e-5); // also: the same ones were chosen
          }
        }
      }
    }
  });
}

TEST_CASE("recall: memories in codes of 8 bits, on every architecture whose heads fit") {
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    double drift = 0;
    int ran = 0;
    each_model([&](auto& name, auto& model, auto& memory, auto shared, auto& text, auto& prompt) {
      const auto specs = model.loaded.model->cache_specs();
      if (!kv_codes_fit(specs)) {
        return;
      }
      ++ran;
      CAPTURE(mlx_ops);
      CAPTURE(name);
      auto coded = model.read(text, {.dropped = {}, .coded = true});
      CHECK(coded->tokens == memory.tokens);
      auto plain = std::make_shared<Memory>(Memory{coded->tokens, {}}); // the floats that the codes stand for
      size_t bytes = 0, whole = 0;
      for (size_t l = 0; l < coded->layers.size(); ++l) {
        auto& layer = plain->layers.emplace_back();
        if (auto& own = coded->layers[l]) {
          REQUIRE(own->keys.is_coded());
          REQUIRE(own->values.is_coded());
          layer.emplace(MemoryLayer{own->keys.floats(), own->values.floats()});
          for (auto& x : own->keys.arrays()) {
            bytes += x.nbytes();
          }
          whole += memory.layers[l]->keys.data.nbytes();
        }
      }
      CHECK(bytes <= 0.32 * static_cast<double>(whole)); // of float32
      // Where a small change lets a router choose another expert, drift has no bound.
      const auto& config = model.loaded.checkpoint.config;
      const bool experts = config.has("num_experts_per_tok") || config.has("moe_num_experts");
      for (int top_k : {2, 3, 1000}) {
        const RecallHow how{.top_k = top_k, .block_tokens = top_k == 2 ? 4 : 1};
        const auto got = run(model, {{prompt, 0, recalled({coded}, how)}});
        // YaRN's factor on half a group: its keys are coded anew.
        CHECK(relative(got, run(model, {{prompt, 0, recalled({plain}, how)}})) < (name == "laguna" ? 0.1 : 2e-4));
      }
      for (bool contiguous : {false, true}) {
        const RecallHow how{.top_k = 1000, .contiguous = contiguous};
        const auto own = recalled({coded}, how), others = recalled({shared}, how);
        const auto got = run(model, {{prompt, 0, own}}), exact = run(model, {{prompt, 0, others}});
        CHECK(relative(got, exact) > 0);
        if (!experts) {
          drift = std::max(drift, relative(got, exact));
        }
        // Beside each other, in one step.
        const auto mixed = run(model, {{prompt, 0, own, 0}, {prompt, 0, nullptr, 24}, {prompt, 0, others, 48}});
        const auto part = [&](int i) {
          const size_t n = prompt.size();
          return Logits(mixed.begin() + i * n, mixed.begin() + (i + 1) * n);
        };
        const auto none = run(model, {{prompt, 0, nullptr}});
        CHECK(relative(part(0), got) < 1e-4);
        CHECK(relative(part(1), none) < 1e-4);
        CHECK(relative(part(2), exact) < 1e-4);
        if (!mlx_ops && on_cpu()) {
          CHECK(part(0) == got);
          CHECK(part(1) == none);
          CHECK(part(2) == exact);
        }
      }
    });
    CHECK(ran > 30);
    CHECK(drift < 0.05); // 0.025 measured
    MESSAGE(ran, " models, logits differ by ", drift, " of the greatest one from memories in float32");
  }
}

} // namespace parallm::test
