// The rules of quantization, shards, and what a GGUF file's config becomes; tests/blackbox/test_convert.py compares
// with mlx-lm's own conversions.
#include "golden.h"

#include "base/file.h"
#include "models/convert.h"
#include "models/quant_recipe.h"

#include <boost/json/parse.hpp>
#include <unistd.h>

namespace parallm::test {
namespace fs = std::filesystem;

TEST_CASE("recipes: more bits for the first, the last and every third layer's v_proj and down_proj, and the head") {
  std::vector<std::string> layers{"lm_head", "model.embed_tokens"};
  for (int i = 0; i < 32; ++i) {
    layers.push_back(fmt::format("model.layers.{}.mlp.down_proj", i));
  }
  const QuantRules rules({64, 4}, "mixed_2_6", "llama", layers);
  const auto bits = [&](int layer, const char* name) {
    return rules(fmt::format("model.layers.{}.{}", layer, name), 128)->bits;
  };
  CHECK(rules("lm_head", 128) == Quantization{64, 6});
  CHECK(rules("model.embed_tokens", 128) == Quantization{64, 2});
  for (int layer : {0, 3, 6, 9, 27, 28, 31}) {
    CAPTURE(layer);
    CHECK(bits(layer, "mlp.down_proj") == 6);
    CHECK(bits(layer, "self_attn.v_proj") == 6);
    CHECK(bits(layer, "self_attn.q_proj") == 2);
  }
  for (int layer : {4, 5, 7, 8, 25, 26}) {
    CAPTURE(layer);
    CHECK(bits(layer, "mlp.down_proj") == 2);
  }
  CHECK(!rules("model.layers.0.mlp.down_proj", 96)); // 64 doesn't divide it
  CHECK_THROWS_AS(QuantRules({32, 4, "mxfp4"}, "mixed_2_6", "llama", layers), Error);
  CHECK_THROWS_AS(QuantRules({64, 4}, "mixed_2_6", "llama", {"lm_head"}), Error);
  CHECK_THROWS_AS(QuantRules({64, 4}, "mixed_9_9", "llama", layers), Error);
}

TEST_CASE("rules: an architecture keeps some of its layers more precise, or as they are") {
  const QuantRules moe({32, 4, "mxfp4"}, "", "qwen3_moe", {});
  CHECK(moe("model.layers.0.mlp.gate", 128) == Quantization{64, 8, "affine"});
  CHECK(moe("model.layers.0.mlp.gate_proj", 128) == Quantization{32, 4, "mxfp4"});
  CHECK_THROWS_AS(moe("model.layers.0.mlp.gate", 96), Error);
  const QuantRules deepseek({64, 4}, "", "deepseek_v3", {});
  CHECK(!deepseek("model.layers.3.mlp.gate", 128));
  CHECK(deepseek("model.layers.3.mlp.switch_mlp.gate_proj", 128));
  CHECK(!may_cast("model.layers.3.mlp.gate.e_score_correction_bias"));
  CHECK(may_cast("model.layers.3.self_attn.q_proj.bias"));
}

TEST_CASE("convert: shards hold what the index says, and open again") {
  const auto folder = fs::temp_directory_path() / fmt::format("parallm_shards_{}", ::getpid());
  fs::remove_all(folder);
  fs::create_directories(folder);
  const auto source = (golden_folder / "llama_mha").string();
  auto model = convert_model(open_checkpoint(source), {});
  const auto bytes = model.bytes;
  size_t written = 0;
  write_model(
      folder.string(), std::move(model), [&](size_t count) { written += count; }, bytes / 3);
  CHECK(written == bytes);
  const auto index = boost::json::parse(read_file((folder / "model.safetensors.index.json").string())).as_object();
  CHECK(index.at("metadata").as_object().at("total_size").to_number<size_t>() == bytes);
  size_t files = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    files += entry.path().extension() == ".safetensors";
  }
  CHECK(files >= 3);
  CHECK(fs::exists(folder / fmt::format("model-00001-of-{:05}.safetensors", files)));
  const auto sequence = references("llama_mha")[0];
  Loaded before(source), after(folder.string());
  CHECK(alone(before, sequence, 100) == alone(after, sequence, 100));
  fs::remove_all(folder);
}

TEST_CASE("convert: a GGUF file's frequency factors are llama3 scaling where they say the same") {
  auto checkpoint = open_checkpoint((golden_folder / "llama_gguf" / "model.gguf").string());
  boost::json::array factors;
  for (int i = 0; i < 8; ++i) { // of 16 rotated dimensions, with theta 500000
    const double length = 2 * M_PI * std::pow(500000.0, i / 8.0);
    const double smooth = (8192 / length - 1) / 3;
    factors.push_back(length < 8192 / 4.0 ? 1.0 : length > 8192 ? 32.0 : 1 / ((1 - smooth) / 32 + smooth));
  }
  checkpoint.config.json["rope_theta"] = 500000.0;
  checkpoint.config.json["rope_scaling"] = {{"rope_type", "frequency_factors"}, {"factors", factors}};
  const auto scaling = convert_model(std::move(checkpoint), {}).config.at("rope_scaling").as_object();
  CHECK(scaling.at("rope_type") == "llama3");
  CHECK(scaling.at("factor") == 32.0);
  CHECK(scaling.at("original_max_position_embeddings") == 8192);
}

TEST_CASE("convert: other frequency factors are longrope's, as mlx-lm has them") {
  auto model = convert_model(open_checkpoint((golden_folder / "llama_gguf_factors" / "model.gguf").string()), {});
  const auto config = read_config("tests/golden/models/llama_gguf_factors.json"); // what mlx-lm's logits are of
  CHECK(boost::json::value(model.config.at("rope_scaling")) == config.json.at("rope_scaling"));
  const auto folder = fs::temp_directory_path() / fmt::format("parallm_factors_{}", ::getpid());
  fs::remove_all(folder);
  fs::create_directories(folder);
  write_model(folder.string(), std::move(model));
  Loaded loaded(folder.string());
  const auto sequence = references("llama_gguf_factors")[0];
  CHECK(difference(alone(loaded, sequence, 100), sequence) < 1e-4);
  fs::remove_all(folder);
}

} // namespace parallm::test
