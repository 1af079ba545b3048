// Speed of a model of Llama-3-8B's shapes with random weights, decoding by batch size and reading prompts: a step of
// the flat model, greedy, one step ahead, without server, scheduler or sampler. `decode [bits: 16, 8 or 4] [context]
// [rounds] [batch sizes...]`. With `memories=10000,100000` too: steps of rows that all recall so many random memories,
// 16 of each query, beside steps without, in turns. With PARALLM_MLX_OPS set, MLX's own ops do all the work.
#include "kv/recall.h"
#include "models/config.h"
#include "models/model.h"
#include "nn/device.h"
#include "nn/weights.h"

#include <boost/json/parse.hpp>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <numeric>
#include <sstream>

using namespace parallm;

namespace {

constexpr int layers = 32, hidden = 4096, inner = 14336, vocabulary = 128256, heads = 32, kv_heads = 8, head_dim = 128;
constexpr int block_size = 16, steps = 48;

std::unique_ptr<Model> make(int bits) {
  Config config;
  config.json = boost::json::parse(fmt::format(
                                       R"({{"model_type":"llama","hidden_size":{},"num_hidden_layers":{},
      "intermediate_size":{},"num_attention_heads":{},"num_key_value_heads":{},"head_dim":{},"rms_norm_eps":1e-5,
      "vocab_size":{},"rope_theta":500000,"tie_word_embeddings":false}})",
                                       hidden,
                                       layers,
                                       inner,
                                       heads,
                                       kv_heads,
                                       head_dim,
                                       vocabulary))
                    .as_object();
  std::unordered_map<std::string, mx::array> arrays;
  const auto matrix = [&](const std::string& name, int outputs, int inputs) {
    auto w = mx::astype(mx::random::normal({outputs, inputs}, mx::bfloat16) * 0.02f, mx::bfloat16);
    if (bits < 16) {
      auto parts = mx::quantize(w, 64, bits);
      mx::eval(parts);
      arrays.insert_or_assign(name + ".weight", parts[0]);
      arrays.insert_or_assign(name + ".scales", parts[1]);
      arrays.insert_or_assign(name + ".biases", parts[2]);
    } else {
      mx::eval(w);
      arrays.insert_or_assign(name + ".weight", w);
    }
  };
  const auto norm = [&](const std::string& name) {
    arrays.insert_or_assign(name + ".weight", mx::ones({hidden}, mx::bfloat16));
  };
  matrix("model.embed_tokens", vocabulary, hidden);
  matrix("lm_head", vocabulary, hidden);
  norm("model.norm");
  for (int i = 0; i < layers; ++i) {
    auto layer = fmt::format("model.layers.{}.", i);
    norm(layer + "input_layernorm");
    norm(layer + "post_attention_layernorm");
    matrix(layer + "self_attn.q_proj", heads * head_dim, hidden);
    matrix(layer + "self_attn.k_proj", kv_heads * head_dim, hidden);
    matrix(layer + "self_attn.v_proj", kv_heads * head_dim, hidden);
    matrix(layer + "self_attn.o_proj", hidden, heads * head_dim);
    matrix(layer + "mlp.gate_proj", inner, hidden);
    matrix(layer + "mlp.up_proj", inner, hidden);
    matrix(layer + "mlp.down_proj", hidden, inner);
  }
  Quantizations quantizations;
  if (bits < 16) {
    quantizations.all = Quantization{64, bits};
  }
  Weights weights(std::move(arrays), quantizations, mx::bfloat16);
  auto model = make_model(config, weights);
  weights.finish();
  return model;
}

/** Opens a step of one token for each row, at a position. */
void begin(Caches& caches, int batch, int width, int position, const std::shared_ptr<const Recalled>& recalled = {}) {
  std::vector<Span> spans;
  for (int row = 0; row < batch; ++row) {
    std::vector<int32_t> blocks(width);
    for (int i = 0; i < width; ++i) {
      blocks[i] = i * batch + row; // rows' blocks lie among one another
    }
    spans.push_back({row, 1, position, blocks});
    spans.back().recalled = recalled;
  }
  caches.begin(spans);
}

mx::array next_ids(Model& model, Caches& caches, const mx::array& ids) {
  return mx::astype(mx::argmax(model.logits(model.hidden(ids, caches)), 1), mx::int32);
}

void measure(Model& model, int batch, int context) {
  int width = (context + steps + 8) / block_size + 1;
  auto caches = make_paged_caches(
      model.cache_specs(), {.block_size = block_size, .blocks = batch * width, .dtype = mx::bfloat16});
  auto ids = mx::zeros({batch}, mx::int32);
  using Clock = std::chrono::steady_clock;
  auto start = Clock::now();
  double building = 0, launching = 0;
  for (int step = -8; step < steps; ++step) { // the first ones compile
    if (step == 0) {
      mx::eval(ids);
      start = Clock::now();
      building = launching = 0;
    }
    auto began = Clock::now();
    begin(*caches, batch, width, context + step + 8);
    auto next = next_ids(model, *caches, ids);
    std::chrono::duration<double> built = Clock::now() - began;
    building += built.count();
    mx::async_eval(next);
    std::chrono::duration<double> launched = Clock::now() - began;
    launching += (launched - built).count();
    mx::eval(ids);
    ids = next;
  }
  mx::eval(ids);
  std::chrono::duration<double> time = Clock::now() - start;
  fmt::print(
      "batch {:3} context {:5}: {:8.0f} tokens/s, {:6.2f} ms a step, of it building {:.2f}, launching {:.2f}\n",
      batch,
      context,
      batch * steps / time.count(),
      time.count() / steps * 1e3,
      building / steps * 1e3,
      launching / steps * 1e3);
  std::fflush(stdout);
}

/** A prompt read in one step. */
void measure_prompt(Model& model, int length) {
  auto caches = make_paged_caches(
      model.cache_specs(), {.block_size = block_size, .blocks = length / block_size + 1, .dtype = mx::bfloat16});
  std::vector<int32_t> blocks(length / block_size + 1);
  std::iota(blocks.begin(), blocks.end(), 0);
  auto ids = mx::zeros({length}, mx::int32);
  double best = 1e9;
  for (int i = 0; i < 4; ++i) {
    auto start = std::chrono::steady_clock::now();
    caches->begin({{0, length, 0, blocks}});
    auto hidden = model.hidden(ids, *caches);
    mx::eval(mx::argmax(model.logits(mx::slice(hidden, {length - 1, 0}, {length, hidden.shape(1)})), 1));
    std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count());
  }
  fmt::print("prompt {:5}: {:8.0f} tokens/s\n", length, length / best);
  std::fflush(stdout);
}

std::shared_ptr<const Recalled> random_memories(const Model& model, int count) {
  auto memory = std::make_shared<Memory>();
  memory->tokens.resize(count);
  for (const auto& spec : model.cache_specs()) {
    const auto random = [&](int width) {
      return mx::astype(mx::random::normal({spec.kv_heads, count, width}, mx::bfloat16), mx::bfloat16);
    };
    memory->layers.emplace_back(MemoryLayer{random(spec.head_dim), random(spec.v_head_dim)});
    mx::eval(memory->layers.back()->keys.data, memory->layers.back()->values.data);
  }
  auto memories = std::make_shared<Memories>(std::vector<std::shared_ptr<const Memory>>{std::move(memory)});
  for (int i = 0; i < layers; ++i) {
    mx::eval(memories->layer(i, nullptr, false)->inverse_norms); // layer by layer: all at once would take much memory
  }
  return std::make_shared<Recalled>(std::move(memories), RecallHow{.top_k = 16});
}

/** Milliseconds of a step: medians of rounds in turns, the first of `recalled` without memories. */
void measure_memories(
    Model& model,
    int batch,
    int context,
    const std::vector<std::shared_ptr<const Recalled>>& recalled) {
  constexpr int rounds = 7, steps_of_round = 16;
  const int width = (context + steps_of_round) / block_size + 1;
  auto caches = make_recall_caches(
      make_paged_caches(
          model.cache_specs(), {.block_size = block_size, .blocks = batch * width, .dtype = mx::bfloat16}),
      layers);
  std::vector<std::vector<double>> times(recalled.size());
  for (int round = -1; round < rounds; ++round) { // the first one compiles
    for (size_t i = 0; i < recalled.size(); ++i) {
      auto ids = mx::zeros({batch}, mx::int32);
      mx::eval(ids);
      const auto start = std::chrono::steady_clock::now();
      for (int step = 0; step < steps_of_round; ++step) {
        begin(*caches, batch, width, context + step, recalled[i]);
        auto next = next_ids(model, *caches, ids);
        mx::async_eval(next);
        mx::eval(ids);
        ids = next;
      }
      mx::eval(ids);
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      if (round >= 0) {
        times[i].push_back(time.count() / steps_of_round * 1e3);
      }
    }
  }
  for (size_t i = 0; i < recalled.size(); ++i) {
    std::sort(times[i].begin(), times[i].end());
    fmt::print(
        "memories {:6} batch {:3}: {:6.2f} ms a step ({:.2f} to {:.2f}), {:.2f} times one without\n",
        recalled[i] ? recalled[i]->memories->tokens() : 0,
        batch,
        times[i][rounds / 2],
        times[i].front(),
        times[i].back(),
        times[i][rounds / 2] / times[0][rounds / 2]);
  }
  std::fflush(stdout);
}

} // namespace

int main(int count, char** arguments) {
  prepare_device();
  force_mlx_ops(std::getenv("PARALLM_MLX_OPS") != nullptr);
  std::vector<int> memories;
  if (const std::string last = arguments[count - 1], name = "memories="; count > 1 && last.starts_with(name)) {
    std::istringstream numbers(last.substr(name.size()));
    for (std::string number; std::getline(numbers, number, ',');) {
      memories.push_back(std::atoi(number.c_str()));
    }
    --count;
  }
  int bits = count > 1 ? std::atoi(arguments[1]) : 16;
  int context = count > 2 ? std::atoi(arguments[2]) : 256;
  std::vector<int> batches = {1, 4, 8, 16, 32, 64};
  int rounds = count > 3 ? std::atoi(arguments[3]) : 1;
  if (count > 4) {
    batches.clear();
    std::transform(arguments + 4, arguments + count, std::back_inserter(batches), [](char* a) { return std::atoi(a); });
  }
  fmt::print("{} bits, {}\n", bits, cuda_kernels() ? "our kernels" : "MLX's ops");
  auto model = make(bits);
  for (int round = 0; round < rounds; ++round) {
    for (int batch : batches) {
      measure(*model, batch, context);
    }
    for (int length : {128, 512, 2048}) {
      measure_prompt(*model, length);
    }
  }
  if (!memories.empty()) {
    std::vector<std::shared_ptr<const Recalled>> recalled{nullptr};
    std::transform(memories.begin(), memories.end(), std::back_inserter(recalled), [&](int number) {
      return random_memories(*model, number);
    });
    for (int batch : {1, 8}) {
      measure_memories(*model, batch, context, recalled);
    }
  }
}
