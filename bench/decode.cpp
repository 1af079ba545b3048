// Speed of a model of Llama-3-8B's shapes with random weights, decoding by batch size and reading prompts: a step of
// the flat model, greedy, one step ahead, without server, scheduler or sampler. `decode [bits: 16, 8 or 4] [context]
// [rounds] [batch sizes...]`. With PARALLM_MLX_OPS set, MLX's own ops do all the work.
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
    std::vector<Span> spans;
    for (int row = 0; row < batch; ++row) {
      std::vector<int32_t> blocks(width);
      for (int i = 0; i < width; ++i) {
        blocks[i] = i * batch + row; // rows' blocks lie among one another
      }
      spans.push_back({row, 1, context + step + 8, blocks});
    }
    caches->begin(spans);
    auto next = mx::argmax(model.logits(model.hidden(ids, *caches)), 1);
    next = mx::astype(next, mx::int32);
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

} // namespace

int main(int count, char** arguments) {
  prepare_device();
  force_mlx_ops(std::getenv("PARALLM_MLX_OPS") != nullptr);
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
}
