// `make models`: the README's table of architectures, from the golden models. No test: it only measures.
#include "golden.h"

#include <fmt/os.h>

#include <map>

namespace parallm::test {

namespace {

/** The worst of what an architecture's models showed; below 0: not measured. */
struct Row {
  int configs = 0;
  double float32 = -1;
  double bfloat16 = -1;
  double quantized = -1;
};

void worsen(double& worst, Loaded loaded, const std::vector<Sequence>& sequences) {
  for (auto& sequence : sequences) {
    worst = std::max(worst, difference(alone(loaded, sequence, 7), sequence));
  }
}

std::string shown(double value) {
  return value < 0 ? "–" : fmt::format("{:.0e}", value);
}

} // namespace

TEST_CASE("table of models" * doctest::skip()) {
  std::map<std::string, Row> rows;
  for (auto& name : golden_names()) {
    auto folder = golden_folder / name;
    auto path = std::filesystem::exists(folder / "model.gguf") ? folder / "model.gguf" : folder;
    auto sequences = references(name);
    Loaded loaded(path.string());
    auto type = loaded.checkpoint.config.text("model_type");
    Row& row = rows[type];
    bool quantized = std::filesystem::is_directory(path) &&
        (loaded.checkpoint.config.has("quantization") || loaded.checkpoint.config.has("quantization_config"));
    row.configs += !name.ends_with("-4bit");
    worsen(quantized ? row.quantized : row.float32, std::move(loaded), sequences);
    if (!quantized) {
      worsen(row.bfloat16, Loaded(path.string(), mx::bfloat16), {sequences[0]}); // see tools/golden_salt.py
    }
  }
  auto out = fmt::output_file("build/models.md");
  out.print("| `model_type` | configs | float32 | 4-bit weights | bfloat16 |\n| --- | --- | --- | --- | --- |\n");
  for (auto& [type, row] : rows) {
    out.print(
        "| `{}` | {} | {} | {} | {} |\n",
        type,
        row.configs,
        shown(row.float32),
        shown(row.quantized),
        shown(row.bfloat16));
  }
}

} // namespace parallm::test
