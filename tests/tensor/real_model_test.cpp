// SmolLM2-135M-Instruct as GGUF, where PARALLM_TEST_MODEL names the file.
#include "golden.h"

#include "base/file.h"

#include <boost/json/parse.hpp>
#include <boost/json/value_to.hpp>

#include <chrono>

namespace parallm::test {

namespace {

/** The recorded prompts with what followed. */
std::vector<std::vector<int>> recorded_texts() {
  const auto record = boost::json::parse(read_file("tests/golden/smollm2.json"));
  std::vector<std::vector<int>> texts;
  for (const auto& prompt : record.at("prompts").as_array()) {
    auto ids = boost::json::value_to<std::vector<int>>(prompt.at("ids"));
    auto next = boost::json::value_to<std::vector<int>>(prompt.at("float32").at("ids"));
    ids.insert(ids.end(), next.begin(), next.end());
    texts.push_back(std::move(ids));
  }
  return texts;
}

double perplexity(Model& model, Caches& caches, const std::vector<std::vector<int>>& texts) {
  double sum = 0;
  size_t count = 0;
  for (const auto& ids : texts) {
    const int length = ids.size();
    caches.begin({{0, length, 0, block_range(0, (length + 15) / 16)}});
    auto logits = model.logits(model.hidden(mx::array(ids.data(), {length}, mx::int32), caches));
    logits = mx::astype(mx::slice(logits, {0, 0}, {length - 1, logits.shape(1)}), mx::float32);
    mx::array next(ids.data() + 1, {length - 1, 1}, mx::int32);
    auto scores = mx::squeeze(mx::take_along_axis(logits, next, 1), 1) - mx::logsumexp(logits, 1);
    sum += mx::sum(scores).item<float>();
    count += length - 1;
  }
  return std::exp(-sum / count);
}

/** The same weights as numbers: layers compute in float32, without codes. */
void dequantize_all(Weights& weights) {
  for (const auto& name : weights.names_ending(".scales")) {
    const auto layer = name.substr(0, name.size() - 7);
    auto codes = *weights.pull(layer + ".weight");
    auto scales = *weights.pull(name);
    const int group = 32; // GGUF's
    const int bits = codes.shape(-1) * 32 / (scales.shape(-1) * group);
    scales = mx::astype(scales, mx::float32);
    auto biases = mx::astype(*weights.pull(layer + ".biases"), mx::float32);
    weights.put(layer + ".weight", mx::dequantize(codes, scales, biases, group, bits));
  }
}

} // namespace

TEST_CASE("real model: the capital of France") {
  auto* path = std::getenv("PARALLM_TEST_MODEL");
  if (!path) {
    MESSAGE("PARALLM_TEST_MODEL is not set");
    return;
  }
  // The chat template's text around "What is the capital of France?", and "The
  // capital of France is Paris.".
  const std::vector<int> prompt = {1,   9690, 198, 2683, 359,   253,  5356, 5646, 11173, 3365, 3511, 308,  34519,
                                   28,  7018, 411, 407,  19712, 8182, 2,    198,  1,     4093, 198,  1780, 314,
                                   260, 3575, 282, 4649, 47,    2,    198,  1,    520,   9531, 198};
  const std::vector<int> answer = {504, 3575, 282, 4649, 314, 7042, 30};
  Loaded loaded(path, std::nullopt, 32, 16);
  std::vector<int> said;
  std::vector<int> ids = prompt;
  int offset = 0;
  auto start = std::chrono::steady_clock::now();
  double prefill = 0;
  while (said.size() < answer.size()) {
    auto rows = step(loaded, {{ids, offset, block_range(4, 8), 0}});
    auto& last = rows.back();
    offset += ids.size();
    ids = {int(std::max_element(last.begin(), last.end()) - last.begin())};
    said.push_back(ids[0]);
    std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    if (said.size() == 1) {
      prefill = passed.count();
    } else if (said.size() == answer.size()) {
      MESSAGE(fmt::format(
          "prefill {:.1f} tokens/s, decode {:.1f} tokens/s",
          prompt.size() / prefill,
          (answer.size() - 1) / (passed.count() - prefill)));
    }
  }
  CHECK(said == answer);
}

TEST_CASE("real model: perplexity is that of the same weights in float32, codes of x and of keys or not") {
  auto* path = std::getenv("PARALLM_TEST_MODEL");
  if (!path) {
    MESSAGE("PARALLM_TEST_MODEL is not set");
    return;
  }
  const auto texts = recorded_texts();
  REQUIRE(texts.size() == 20);
  const auto measure = [&](bool dequantized, int kv_bits, mx::Dtype kv_dtype) {
    auto checkpoint = open_checkpoint(path, {.dtype = mx::float32});
    if (dequantized) {
      dequantize_all(checkpoint.weights);
    }
    auto model = make_model(checkpoint.config, checkpoint.weights);
    auto caches =
        make_paged_caches(model->cache_specs(), {.block_size = 16, .blocks = 32, .dtype = kv_dtype, .bits = kv_bits});
    return perplexity(*model, *caches, texts);
  };
  const double exact = measure(true, 0, mx::float32);
  const double served = measure(false, 0, mx::float16);
  const double codes_8 = measure(false, 8, mx::float16), codes_4 = measure(false, 4, mx::float16);
  MESSAGE(fmt::format(
      "perplexity {:.5f}, served {:.5f}, with 8-bit keys {:.5f}, with 4-bit keys {:.5f}",
      exact,
      served,
      codes_8,
      codes_4));
  CHECK(std::abs(served / exact - 1) < 1e-3);
  CHECK(std::abs(codes_8 / exact - 1) < 1e-2);
  CHECK(std::abs(codes_4 / exact - 1) < 0.3);
}

} // namespace parallm::test
