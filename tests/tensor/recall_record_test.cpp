// What is told of attention to memories: beside a plain sum in float64 over what the layers computed, and equal
// whatever stands beside a row.
#include "recalling.h"

#include "engine/background.h"

#include <map>
#include <set>

namespace parallm::test {

namespace {

/** Keeps what each layer gives to memories. */
class Watching : public Caches {
 public:
  struct Seen {
    mx::array q, masses;
    float scale;
    const Rope* rope;
  };

  Watching(std::unique_ptr<Caches> caches, std::map<int, Seen>& seen) : caches_(std::move(caches)), seen_(seen) {}

  Cache& layer(int index) override {
    layers_[index] = std::make_unique<Layer>(*this, index);
    return *layers_[index];
  }
  void begin(std::vector<Span> spans) override {
    caches_->begin(std::move(spans));
  }
  const mx::array& positions() override {
    return caches_->positions();
  }

 private:
  struct Layer : Cache {
    Layer(Watching& all, int index) : all(all), index(index) {}
    mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
      return all.caches_->layer(index).attend(q, k, v, how);
    }
    Attended attend_openly(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
      auto out = all.caches_->layer(index).attend_openly(q, k, v, how);
      all.seen_.insert_or_assign(index, Seen{out.q, out.masses, how.scale, how.rope});
      return out;
    }
    mx::array recur(const std::vector<mx::array>& inputs, const Recurrence& f) override {
      return all.caches_->layer(index).recur(inputs, f);
    }
    Watching& all;
    int index;
  };

  std::unique_ptr<Caches> caches_;
  std::map<int, Seen>& seen_;
  std::map<int, std::unique_ptr<Layer>> layers_;
};

struct Wanted {
  std::vector<double> mass, cosine;
  std::vector<int> count;
  double own = 0; // what the row's own tokens get
};

/** Of the last token of a step, in float64. */
Wanted by_definition(const std::map<int, Watching::Seen>& seen, const Recalled& recalled) {
  const RecallHow& how = recalled.how;
  const int N = recalled.memories->tokens();
  Wanted wanted{std::vector<double>(N), std::vector<double>(N, -2), std::vector<int>(N)};
  int queries = 0;
  for (auto& [layer, one] : seen) {
    if (layer < how.record_from) {
      continue;
    }
    auto& ready = *recalled.memories->layer(layer, one.rope, how.contiguous);
    const auto q = floats(one.q), own = floats(one.masses), keys = floats(ready.keys.data);
    const int T = one.q.shape(0), H = one.q.shape(1), D = one.q.shape(2), shared = H / ready.keys.shape(0);
    for (int h = 0; h < H; ++h, ++queries) {
      std::vector<double> products(N), cosines(N);
      double q_squares = 0;
      for (int d = 0; d < D; ++d) {
        q_squares += std::pow(q[((T - 1) * H + h) * D + d], 2);
      }
      for (int n = 0; n < N; ++n) {
        double squares = 0;
        for (int d = 0; d < D; ++d) {
          const double k = keys[(size_t(h / shared) * N + n) * D + d];
          products[n] += q[((T - 1) * H + h) * D + d] * k;
          squares += k * k;
        }
        cosines[n] = products[n] / std::sqrt(q_squares * squares);
      }
      std::vector<int> order(N);
      std::iota(order.begin(), order.end(), 0);
      const auto& ranks = how.by_dot ? products : cosines;
      std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ranks[a] > ranks[b]; });
      order.resize(std::min(N, how.top_k));
      std::erase_if(order, [&](int n) { return how.threshold && cosines[n] <= *how.threshold; });
      if (how.block_tokens > 1) {
        std::set<int> whole;
        const auto& starts = *recalled.memories->starts();
        for (int n : order) {
          const int first = *(std::upper_bound(starts.begin(), starts.end(), n) - 1);
          const auto next = std::upper_bound(starts.begin(), starts.end(), n);
          const int begin = first + (n - first) / how.block_tokens * how.block_tokens;
          for (int m = begin; m < std::min(begin + how.block_tokens, next == starts.end() ? N : *next); ++m) {
            whole.insert(m);
          }
        }
        order.assign(whole.begin(), whole.end());
      }
      const double local = std::exp(double(own[(T - 1) * H + h]));
      double total = local;
      for (int n : order) {
        total += std::exp(products[n] * one.scale);
      }
      wanted.own += local / total;
      for (int n : order) {
        wanted.mass[n] += std::exp(products[n] * one.scale) / total;
        wanted.cosine[n] = std::max(wanted.cosine[n], cosines[n]);
        wanted.count[n] += 1;
      }
    }
  }
  for (double& mass : wanted.mass) {
    mass /= queries;
  }
  wanted.own /= queries;
  return wanted;
}

bool same(const MemoryUse& a, const MemoryUse& b) {
  return a.queries == b.queries && a.mass == b.mass &&
      std::equal(a.memories.begin(), a.memories.end(), b.memories.begin(), b.memories.end(), [](auto& x, auto& y) {
           return x.memory == y.memory && x.mass == y.mass && x.cosine == y.cosine && x.count == y.count;
         });
}

const std::vector<RecallHow> ways{
    {.top_k = 1},
    {.top_k = 4},
    {.top_k = 1000},
    {.top_k = 8, .contiguous = true},
    {.top_k = 4, .by_dot = true},
    {.top_k = 4, .threshold = 0.25f},
    {.top_k = 4, .layers = {true, false, true}},
    {.top_k = 4, .record_from = 2},
    {.top_k = 1, .block_tokens = 5},
    {.top_k = 3, .block_tokens = 7, .record_from = 1},
    {.top_k = 2, .contiguous = true, .block_tokens = 4},
    {.top_k = 2, .by_dot = true, .block_tokens = 64},
    {.top_k = 6, .threshold = 0.25f, .block_tokens = 3},
    {.top_k = 1000, .threshold = 0.3f, .block_tokens = 6},
};

} // namespace

TEST_CASE("recall: what a query gives to memories is what attention says in float64, and with its own tokens' part 1") {
  const auto file = cases();
  const auto prompt = numbers(file.at("prompt")), text = numbers(file.at("memory"));
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    for (std::string name : {"mha", "gqa"}) {
      std::map<int, Watching::Seen> seen;
      Recalling model((fixtures / name).string(), mx::float32, [&](auto caches) {
        return std::make_unique<Watching>(std::move(caches), seen);
      });
      auto memory = model.read(text);
      auto other = model.read({text.rbegin(), text.rbegin() + 23}); // its last blocks end early
      for (size_t way = 0; way < ways.size(); ++way) {
        CAPTURE(mlx_ops);
        CAPTURE(name);
        CAPTURE(way);
        auto memories =
            ways[way].block_tokens > 1 ? recalled({other, memory, other}, ways[way]) : recalled({memory}, ways[way]);
        const int N = memories->memories->tokens();
        auto record = std::make_shared<MemoryRecord>();
        seen.clear();
        run(model, {{prompt, 0, memories, 0, record}});
        const MemoryUse use = record->use();
        const Wanted wanted = by_definition(seen, *memories);
        CHECK(use.queries == 1);
        CHECK(std::abs(use.mass + wanted.own - 1) < 1e-5);
        CHECK(use.mass > 0.01);
        std::vector<UsedMemory> all(N);
        for (auto& used : use.memories) {
          REQUIRE(used.memory < N);
          CHECK(used.count > 0);
          all[used.memory] = used;
        }
        double worst = 0;
        int chosen = 0;
        for (int n = 0; n < N; ++n) {
          CHECK(all[n].count == wanted.count[n]);
          worst = std::max(worst, std::abs(all[n].mass - wanted.mass[n]));
          if (all[n].count > 0) {
            worst = std::max(worst, std::abs(all[n].cosine - wanted.cosine[n]));
            ++chosen;
          }
        }
        CHECK(worst < 1e-5);
        CHECK(chosen == static_cast<int>(use.memories.size()));
      }
    }
  }
}

TEST_CASE("recall: recording changes no number, and a row's record is the same in any batch") {
  const auto file = cases();
  const auto prompt = numbers(file.at("prompt")), text = numbers(file.at("memory"));
  const std::vector<int> start(prompt.begin(), prompt.end() - 1);
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    CAPTURE(mlx_ops);
    Recalling model((fixtures / "gqa").string());
    auto memory = model.read(text), other = model.read({text.rbegin(), text.rend()});
    auto a = recalled({memory}, {.top_k = 4}), b = recalled({memory, other}, {.top_k = 9, .contiguous = true});
    const auto record = [] { return std::make_shared<MemoryRecord>(); };
    const auto alone = [&](auto& memories) {
      auto made = record();
      run(model, {{prompt, 0, memories, 0, made}});
      return made->use();
    };
    const MemoryUse use_a = alone(a), use_b = alone(b);
    // Two rows that share memories and how, one of them in pieces and a step of one token; a row without; one that
    // isn't recorded.
    run(model, {{start, 0, a, 0}});
    auto first = record(), second = record(), third = record();
    const std::vector<Row> rows{
        {{prompt.back()}, int(start.size()), a, 0, first},
        {prompt, 0, nullptr, 24},
        {prompt, 0, a, 48, second},
        {prompt, 0, b, 72, third}};
    const auto logits = run(model, rows);
    auto plain = rows;
    for (auto& row : plain) {
      row.record = nullptr;
    }
    run(model, {{start, 0, a, 0}});
    const auto unrecorded = run(model, plain);
    if (!mlx_ops && on_cpu()) {
      CHECK(logits == unrecorded);
      CHECK(same(first->use(), use_a));
      CHECK(same(second->use(), use_a));
      CHECK(same(third->use(), use_b));
    }
    CHECK(std::abs(first->use().mass - use_a.mass) < 1e-5);
    CHECK(std::abs(second->use().mass - use_a.mass) < 1e-5);
    CHECK(std::abs(third->use().mass - use_b.mass) < 1e-5);
  }
}

TEST_CASE("recall: where nothing is recalled, nothing is used") {
  const auto file = cases();
  const auto prompt = numbers(file.at("prompt")), text = numbers(file.at("memory"));
  Recalling model((fixtures / "gqa").string());
  auto memory = model.read(text);
  for (auto memories : {recalled({memory}, {.top_k = 0}), recalled({}, {.top_k = 4}), recalled({}, {})}) {
    auto record = std::make_shared<MemoryRecord>();
    run(model, {{prompt, 0, memories, 0, record}});
    CHECK(record->use().queries == 1);
    CHECK(record->use().mass == 0);
    CHECK(record->use().memories.empty());
  }
  // A threshold that nothing is above.
  auto record = std::make_shared<MemoryRecord>();
  run(model, {{prompt, 0, recalled({memory}, {.top_k = 4, .threshold = 1.0f}), 0, record}});
  CHECK(record->use().mass == 0);
  CHECK(record->use().memories.empty());
}

TEST_CASE("recall: a background is the mean of its probes' queries") {
  const auto file = cases();
  const auto prompt = numbers(file.at("prompt")), text = numbers(file.at("memory"));
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    Recalling model((fixtures / "gqa").string());
    auto memory = model.read(text);
    auto memories = std::make_shared<Memories>(std::vector<std::shared_ptr<const Memory>>{memory});
    const RecallHow how{.top_k = 5};
    std::vector<std::vector<int32_t>> probes{{prompt.begin(), prompt.end()}, {7}, {}};
    for (int i = 0; i < 21; ++i) { // more than a step
      probes[2].push_back(20 + i % 5);
    }
    Background background(*model.loaded.model, mx::float32, memories, how, probes);
    auto got = background.step();
    int steps = 1;
    for (; !got; ++steps) {
      got = background.step();
    }
    CHECK(steps == 4);
    std::vector<double> wanted(text.size());
    int queries = 0;
    for (auto& probe : probes) {
      for (size_t end = 1; end <= probe.size(); ++end, ++queries) {
        auto record = std::make_shared<MemoryRecord>();
        run(model, {{{probe.begin(), probe.begin() + end}, 0, std::make_shared<Recalled>(memories, how), 0, record}});
        for (auto& used : record->use().memories) {
          wanted[used.memory] += used.mass;
        }
      }
    }
    double worst = 0;
    REQUIRE(got->size() == wanted.size());
    for (size_t n = 0; n < wanted.size(); ++n) {
      worst = std::max(worst, std::abs((*got)[n] - wanted[n] / queries));
    }
    CHECK(worst < 1e-5);
    CHECK_THROWS_AS(Background(*model.loaded.model, mx::float32, memories, how, {}), Error);
    CHECK_THROWS_AS(Background(*model.loaded.model, mx::float32, memories, how, {{1}, {}}), Error);
  }
}

} // namespace parallm::test
