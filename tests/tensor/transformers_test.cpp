// Repositories as transformers saves them, where mlx-lm says something else or can't open them, against the logits that
// tools/golden_transformers.py recorded.
#include "golden.h"

namespace parallm::test {

TEST_CASE("transformers: its own files give its logits") {
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    for (std::string name : {"ernie4_5_moe", "lfm2_vl", "rwkv7_hf"}) {
      CAPTURE(name);
      const auto folder = std::filesystem::path("tests/golden/transformers") / name;
      const auto sequences = references_of(folder);
      REQUIRE(sequences.size() == 3);
      Loaded loaded(folder.string());
      const auto mixed = together(loaded, sequences, {9, 100, 3});
      for (size_t i = 0; i < sequences.size(); ++i) {
        CAPTURE(i);
        CHECK(difference(alone(loaded, sequences[i], 1000), sequences[i]) < 1e-4);
        CHECK(difference(mixed[i], sequences[i]) < 1e-4);
      }
    }
  }
}

} // namespace parallm::test
