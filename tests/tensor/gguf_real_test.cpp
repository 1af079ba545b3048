// Real GGUF files, where the environment names them: PARALLM_TEST_MODEL (SmolLM2, tools/model.sh) and
// PARALLM_TEST_GEMMA3 (Gemma 3 270M, Q4_K_M: F32, Q4_K, Q5_0, Q6_K and Q8_0; tools/model.sh gemma3).
#include "golden.h"
#include "models/gguf.h"

#include <boost/json/serialize.hpp>

#include <fstream>
#include <map>

namespace parallm::test {
namespace fs = std::filesystem;

namespace {

/** What a process of its own says that loads the model and runs a step (safetensors_test.cpp's "peak memory: child").
 */
size_t peak_of(const std::string& model) {
  ::setenv("PARALLM_PEAK_OF", model.c_str(), 1);
  auto self = fs::read_symlink("/proc/self/exe").string();
  FILE* child = ::popen(fmt::format("'{}' --no-skip --test-case='peak memory: child'", self).c_str(), "r");
  REQUIRE(child);
  size_t loaded = 0, run = 0;
  for (char line[256]; std::fgets(line, sizeof(line), child);) {
    std::sscanf(line, "PEAK %zu %zu", &loaded, &run);
  }
  CHECK(::pclose(child) == 0);
  return loaded;
}

size_t weights_of(const std::string& model) {
  size_t bytes = 0;
  for (auto& [name, array] : read_gguf(model).arrays) {
    bytes += array.nbytes();
  }
  return bytes;
}

} // namespace

#ifdef __linux__

TEST_CASE("gguf: loading a real file takes at most 1.15 times its weights") {
  auto* path = std::getenv("PARALLM_TEST_MODEL");
  if (!path || mx::default_device() != mx::Device::cpu) {
    MESSAGE("PARALLM_TEST_MODEL is not set, or this is no CPU");
    return;
  }
  auto small = peak_of((golden_folder / "llama_head_dim").string());
  auto large = peak_of(path);
  auto ratio = (double(large) - small) / weights_of(path);
  MESSAGE("peak over the weights' bytes: ", ratio);
  CHECK(small > 0);
  CHECK(ratio > 0.5); // it did load
  CHECK(ratio <= 1.15);
}

#endif

// llama.cpp computes in float32 from the same weights, KV too, but for a table of GELU in float16: its logits, which
// reach 40, lie within 0.013 of a float64 computation. Where its two best lie nearer than twice the tolerance, either
// may win.
TEST_CASE("gguf: Gemma 3 270M Q4_K_M says what llama.cpp says") {
  auto* path = std::getenv("PARALLM_TEST_GEMMA3");
  if (!path) {
    MESSAGE("PARALLM_TEST_GEMMA3 is not set");
    return;
  }
  constexpr double tolerance = 0.03;
  auto recorded = read_config("tests/golden/gemma3_q4_k_m.json");
  Loaded loaded(path, mx::float32, 32, 16);
  int steps = 0, near = 0;
  double worst = 0;
  for (auto& item : recorded.json.at("prompts").as_array()) {
    Config prompt{item.as_object(), "gemma3_q4_k_m.json"};
    CAPTURE(prompt.text("text"));
    auto ids = prompt.integers("prompt");
    auto said = prompt.integers("said");
    auto& best = prompt.json.at("best").as_array();
    int offset = 0;
    for (size_t i = 0; i < said.size(); ++i) {
      CAPTURE(i);
      auto row = step(loaded, {{ids, offset, block_range(4, 8), 0}}).back();
      double first = best[i].at(0).at(1).to_number<double>(), second = best[i].at(1).at(1).to_number<double>();
      for (auto& pair : best[i].as_array()) {
        worst = std::max(worst, std::abs(row[pair.at(0).as_int64()] - pair.at(1).to_number<double>()));
      }
      if (first - second > 2 * tolerance) {
        CHECK(std::max_element(row.begin(), row.end()) - row.begin() == said[i]);
      } else {
        ++near;
      }
      ++steps;
      offset += ids.size();
      ids = {said[i]};
    }
  }
  MESSAGE(steps, " steps, ", near, " with two near best, greatest difference of a logit ", worst);
  CHECK(steps == 320);
  CHECK(near < 16);
  CHECK(worst < tolerance);
}

} // namespace parallm::test
