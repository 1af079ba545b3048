// Tiny random models against the logits that tools/golden.py recorded.
#include "golden.h"

namespace parallm::test {

namespace {

// Of the largest logit, float32 activations.
constexpr double tolerance = 1e-4;
constexpr double codes_tolerance = 1.5e-3; // where weights are affine codes: our kernels round x to 16 bits then

std::string path_of(const std::string& name) {
  auto folder = golden_folder / name;
  auto file = folder / "model.gguf";
  return std::filesystem::exists(file) ? file.string() : folder.string();
}

bool has_codes(const std::string& path) {
  return !open_checkpoint(path, {}).weights.names_ending(".biases").empty();
}

void compare(bool mlx_ops) {
  MlxOps ops(mlx_ops);
  for (auto& name : golden_names()) {
    CAPTURE(name);
    auto sequences = references(name);
    REQUIRE(sequences.size() == 3);
    Loaded loaded(path_of(name));
    const double allowed = !mlx_ops && on_cpu() && has_codes(path_of(name)) ? codes_tolerance : tolerance;
    for (auto& sequence : sequences) {
      CAPTURE(sequence.prompt);
      CHECK(difference(alone(loaded, sequence, 1000), sequence) < allowed);
      CHECK(difference(alone(loaded, sequence, 7), sequence) < allowed);
      CHECK(difference(alone(loaded, sequence, 1), sequence) < allowed);
    }
    auto mixed = together(loaded, sequences, {9, 100, 3});
    for (size_t i = 0; i < sequences.size(); ++i) {
      CAPTURE(i);
      CHECK(difference(mixed[i], sequences[i]) < allowed);
    }
  }
}

/** The greatest drift with 16-bit activations. Our kernels add up in float32, MLX's on a CPU in the activations' type.
 * tools/golden_salt.py looked for weights that stay within our kernels' bounds whatever the order of sums, also where
 * scales and biases of codes are rounded to that type, as everywhere but in our CPU kernels. */
double allowed_drift(bool mlx_ops, mx::Dtype dtype) {
  if (dtype == mx::float16) {
    return mlx_ops ? 0.025 : 0.015;
  }
  return mlx_ops ? 0.15 : 0.1;
}

} // namespace

TEST_CASE("golden: MLX's ops give the reference's logits") {
  compare(true);
}

TEST_CASE("golden: our kernels give the reference's logits") {
  compare(false);
}

TEST_CASE(
    "golden: on our kernels a row's logits are the same bits, alone, in "
    "chunks and mixed") {
  if (!on_cpu()) {
    return;
  }
  for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (auto& name : golden_names()) {
      CAPTURE(name);
      auto sequences = references(name);
      Loaded loaded(path_of(name), dtype);
      auto mixed = together(loaded, sequences, {9, 100, 3});
      for (size_t i = 0; i < sequences.size(); ++i) {
        CAPTURE(i);
        CHECK(mixed[i] == alone(loaded, sequences[i], 1000));
        CHECK(mixed[i] == alone(loaded, sequences[i], 5, 40));
      }
    }
  }
}

TEST_CASE("golden: sequences share blocks of a common prefix") {
  for (bool mlx_ops : {true, false}) {
    MlxOps ops(mlx_ops);
    Loaded loaded(path_of("llama"));
    auto sequence = references("llama")[0];
    auto before = alone(loaded, sequence, 1000, 8); // blocks 8.. hold it
    // Another row reads the first 20 tokens out of blocks 8..12 and goes on in
    // its own.
    std::vector<int> blocks = {8, 9, 10, 11, 12, 40, 41, 42};
    std::vector<int> rest(sequence.tokens.begin() + 20, sequence.tokens.end());
    auto rows = step(loaded, {{rest, 20, blocks, sequence.prompt}});
    std::vector<std::vector<float>> kept(rows.begin() + sequence.prompt - 20 - 1, rows.end());
    CHECK(difference(kept, sequence) < tolerance);
  }
}

TEST_CASE("golden: 16-bit activations stay near the reference") {
  for (bool mlx_ops : {true, false}) {
    CAPTURE(mlx_ops);
    MlxOps ops(mlx_ops);
    for (auto& name : golden_names()) {
      CAPTURE(name);
      for (auto dtype : {mx::float16, mx::bfloat16}) {
        CAPTURE((dtype == mx::float16));
        Loaded loaded(path_of(name), dtype);
        CHECK(loaded.checkpoint.kv_dtype == dtype);
        auto sequence = references(name)[0];
        CHECK(difference(alone(loaded, sequence, 1000), sequence) < allowed_drift(mlx_ops, dtype));
      }
    }
  }
}

} // namespace parallm::test
