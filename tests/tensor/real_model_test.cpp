// SmolLM2-135M-Instruct as GGUF, where PARALLM_TEST_MODEL names the file.
#include "golden.h"

#include <chrono>

namespace parallm::test {

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

} // namespace parallm::test
