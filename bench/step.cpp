// Speed of the model's own steps, without scheduler and HTTP: prefill of one prompt, then greedy decoding of equal
// rows. `bench_step MODEL [PROMPT=128] [OUTPUT=64] [ROWS=1,8,32] [MEMORIES=0] [TOP_K=16] [ROUNDS=5]`: a line for each
// count of rows; best and median of its rounds, and the CPU time of a step over all threads, which with
// PARALLM_THREADS=1 says something on a busy machine too. MEMORIES: counts such as 0,1000,10000, of random numbers,
// which all rows recall; the counts take turns, and lines after the first say how much longer a step took.
#include "engine/runner.h"
#include "kv/recall.h"
#include "models/checkpoint.h"
#include "models/model.h"
#include "nn/device.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <numeric>
#include <sstream>

namespace mx = mlx::core;
using namespace parallm;

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

constexpr int block_size = 16;

struct Sizes {
  int prompt, output, rows;
  int blocks() const {
    return (prompt + output + block_size - 1) / block_size;
  }
};

RowStep row_step(const Sizes& sizes, int row, int start, int count) {
  RowStep step;
  step.slot = row;
  step.start = start;
  step.count = count;
  step.blocks.resize(sizes.blocks());
  std::iota(step.blocks.begin(), step.blocks.end(), row * sizes.blocks());
  return step;
}

std::shared_ptr<const Recalled> random_memories(const Model& model, mx::Dtype dtype, int count, int top_k) {
  auto memory = std::make_shared<Memory>();
  memory->tokens.resize(count);
  for (const auto& spec : model.cache_specs()) {
    const auto random = [&](int width) { return mx::random::normal({spec.kv_heads, count, width}, dtype); };
    memory->layers.emplace_back(MemoryLayer{random(spec.head_dim), random(spec.v_head_dim)});
    mx::eval(memory->layers.back()->keys.data, memory->layers.back()->values.data);
  }
  auto memories = std::make_shared<Memories>(std::vector<std::shared_ptr<const Memory>>{std::move(memory)});
  return std::make_shared<Recalled>(std::move(memories), RecallHow{.top_k = top_k});
}

/** Seconds of the prefill of all rows, a prompt a step, of one decoding step, and of the latter's CPU time. */
std::array<double, 3>
round(ModelRunner& runner, const Sizes& sizes, int vocabulary, const std::shared_ptr<const Recalled>& recalled) {
  auto start = Clock::now();
  for (int r = 0; r < sizes.rows; ++r) {
    Plan plan;
    plan.joins.push_back({.slot = r, .sampling = {}, .end_ids = {}, .prompt = {}, .generated = {}});
    plan.joins.back().sampling.temperature = 0;
    plan.joins.back().recall.memories = recalled;
    auto step = row_step(sizes, r, 0, sizes.prompt);
    for (int i = 0; i < sizes.prompt; ++i) {
      step.ids.push_back((1009 * i + 31 * r + 17) % vocabulary);
    }
    step.sample = true;
    plan.rows.push_back(std::move(step));
    runner.launch(plan);
    runner.collect();
  }
  const double prefill = seconds_since(start);
  start = Clock::now();
  const std::clock_t cpu_start = std::clock();
  for (int i = 0; i < sizes.output; ++i) { // one step ahead, as the engine does
    Plan plan;
    for (int r = 0; r < sizes.rows; ++r) {
      auto step = row_step(sizes, r, sizes.prompt + i, 1);
      step.sample = true;
      step.draw_index = i + 1;
      plan.rows.push_back(std::move(step));
    }
    runner.launch(plan);
    if (i > 0) {
      runner.collect();
    }
  }
  runner.collect();
  const double cpu = double(std::clock() - cpu_start) / CLOCKS_PER_SEC;
  return {prefill, seconds_since(start) / sizes.output, cpu / sizes.output};
}

} // namespace

std::vector<int> numbers(const std::string& text) {
  std::vector<int> out;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    out.push_back(std::atoi(part.c_str()));
  }
  return out;
}

int main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "bench_step MODEL [PROMPT] [OUTPUT] [ROWS,...] [MEMORIES,...] [TOP_K] [ROUNDS]\n");
    return 2;
  }
  prepare_device();
  const int prompt = argc > 2 ? std::atoi(argv[2]) : 128;
  const int output = argc > 3 ? std::atoi(argv[3]) : 64;
  const auto memories = numbers(argc > 5 ? argv[5] : "0");
  const int top_k = argc > 6 ? std::atoi(argv[6]) : 16;
  const int rounds = argc > 7 ? std::atoi(argv[7]) : 5;
  for (const int rows : numbers(argc > 4 ? argv[4] : "1,8,32")) {
    const Sizes sizes{prompt, output, rows};
    auto checkpoint = open_checkpoint(argv[1], {});
    auto model = make_model(checkpoint.config, checkpoint.weights);
    const int vocabulary = model->vocabulary();
    auto caches = make_paged_caches(
        model->cache_specs(),
        {.block_size = block_size,
         .blocks = sizes.rows * sizes.blocks(),
         .slots = sizes.rows,
         .dtype = checkpoint.kv_dtype});
    struct Times {
      std::shared_ptr<const Recalled> recalled;
      std::vector<double> prefills, steps, cpu;
    };
    std::vector<Times> all;
    for (const int count : memories) {
      all.push_back({count > 0 ? random_memories(*model, checkpoint.kv_dtype, count, top_k) : nullptr, {}, {}, {}});
    }
    if (std::any_of(all.begin(), all.end(), [](auto& times) { return times.recalled != nullptr; })) {
      caches = make_recall_caches(std::move(caches), static_cast<int>(model->cache_specs().size()));
    }
    ModelRunner runner(std::move(model), std::move(caches), sizes.rows);
    for (int i = -1; i < rounds; ++i) {
      for (Times& times : all) {
        auto [prefill, step, cpu] = round(runner, sizes, vocabulary, times.recalled);
        if (i >= 0) { // before, pages, kernels and buffers warm up
          times.prefills.push_back(prefill);
          times.steps.push_back(step);
          times.cpu.push_back(cpu);
        }
      }
    }
    for (Times& times : all) {
      std::sort(times.prefills.begin(), times.prefills.end());
      std::sort(times.steps.begin(), times.steps.end());
      std::sort(times.cpu.begin(), times.cpu.end());
    }
    const auto median = [](const std::vector<double>& sorted) { return sorted[sorted.size() / 2]; };
    const auto speeds = [&](double count, const std::vector<double>& sorted) {
      return fmt::format("{:8.1f} ({:.1f})", count / median(sorted), count / sorted.front());
    };
    for (size_t i = 0; i < all.size(); ++i) {
      fmt::print(
          "rows {:3}: prefill tokens/s {}, decode tokens/s {}, a step {:.2f} ms ({:.2f} of CPUs){}\n",
          sizes.rows,
          speeds(1.0 * sizes.rows * prompt, all[i].prefills),
          speeds(sizes.rows, all[i].steps),
          median(all[i].steps) * 1e3,
          median(all[i].cpu) * 1e3,
          i == 0 && memories[i] == 0 ? ""
                                     : fmt::format(
                                           ", {} memories: {:.2f} times ({:.2f})",
                                           memories[i],
                                           median(all[i].steps) / median(all[0].steps),
                                           median(all[i].cpu) / median(all[0].cpu)));
    }
  }
}
