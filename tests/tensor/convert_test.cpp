// The rules of quantization, shards, and what a GGUF file's config becomes; tests/blackbox/test_convert.py compares
// with mlx-lm's own conversions.
#include "golden.h"

#include "base/file.h"
#include "models/convert.h"
#include "models/gguf_names.h"
#include "models/gguf_tensors.h"
#include "models/gguf_types.h"
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
  const std::string layer = "model.language_model.layers.{}.mlp.experts.up_proj";
  const QuantRules spark({16, 4, "nvfp4"}, "", "muse_spark", {fmt::format(fmt::runtime(layer), 9), "lm_head"});
  CHECK(spark(fmt::format(fmt::runtime(layer), 8), 128));
  CHECK(!spark(fmt::format(fmt::runtime(layer), 9), 128));
  CHECK(!spark(fmt::format(fmt::runtime(layer), 0), 128));
  CHECK(!spark("lm_head", 128));
  CHECK(!may_cast("deepseek_v3", "model.layers.3.mlp.gate.e_score_correction_bias"));
  CHECK(may_cast("deepseek_v3", "model.layers.3.self_attn.q_proj.bias"));
  CHECK(!may_cast("kimi_linear", "model.layers.0.self_attn.A_log"));
  CHECK(may_cast("qwen3_next", "model.layers.0.linear_attn.A_log"));
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

namespace {

/** A Llama of one layer of zeros, whose output layer is that of a GGUF file's tensor [3,256]. */
Checkpoint with_head(const GgufTensor& tensor) {
  const auto head = read_gguf_tensor(tensor, {.groups_of_16 = true});
  std::unordered_map<std::string, mx::array> arrays{
      {"lm_head.weight", head.weight},
      {"lm_head.scales", *head.scales},
      {"lm_head.biases", *head.biases},
      {"model.embed_tokens.weight", mx::zeros({3, 256})},
      {"model.norm.weight", mx::zeros({256})}};
  const std::string layer = "model.layers.0.";
  for (auto* name : {"input_layernorm", "post_attention_layernorm"}) {
    arrays.emplace(layer + name + ".weight", mx::zeros({256}));
  }
  for (auto* name : {"q_proj", "k_proj", "v_proj", "o_proj"}) {
    arrays.emplace(layer + "self_attn." + name + ".weight", mx::zeros({256, 256}));
  }
  for (auto* name : {"gate_proj", "up_proj", "down_proj"}) {
    arrays.emplace(layer + "mlp." + name + ".weight", mx::zeros({256, 256}));
  }
  return {
      .config =
          Config{
              {{"model_type", "llama"},
               {"hidden_size", 256},
               {"intermediate_size", 256},
               {"num_hidden_layers", 1},
               {"num_attention_heads", 1},
               {"vocab_size", 3},
               {"tie_word_embeddings", false}}},
      .weights = Weights(arrays, {{}, {{"lm_head", head.quantization}}}, mx::float32),
      .eos_ids = {},
      .dtype = mx::float32,
      .kv_dtype = mx::float32,
      .stored_dtype = mx::float16,
      .generation = {}};
}

mx::array tensor_of(const ConvertedModel& model, const std::string& name) {
  auto found = std::find_if(model.tensors.begin(), model.tensors.end(), [&](auto& t) { return t.name == name; });
  REQUIRE(found != model.tensors.end());
  return *found->array;
}

} // namespace

TEST_CASE("convert: GGUF kinds with groups of 16 become floats, ggml's bit for bit in float32, or are quantized anew") {
  const auto contents = open_gguf_contents("tests/golden/gguf_types/types.gguf");
  for (std::string kind : {"Q2_K", "Q3_K", "Q6_K"}) {
    CAPTURE(kind);
    const auto& tensor = *find_gguf_tensor(contents, kind + ".weight");
    const auto values = dequantize_gguf(*find_gguf_tensor(contents, kind + ".values"));
    const auto exact = convert_model(with_head(tensor), {.dtype = mx::float32});
    CHECK(exact.widened == 1);
    CHECK(floats(tensor_of(exact, "lm_head.weight")) == floats(values));
    CHECK(!exact.config.contains("quantization"));
    const auto half = tensor_of(convert_model(with_head(tensor), {}), "lm_head.weight");
    CHECK(half.dtype() == mx::float16); // what most of the file is best in
    CHECK(mx::array_equal(half, mx::astype(values, mx::float16)).item<bool>());
    const auto codes = convert_model(with_head(tensor), {.dtype = mx::float32, .quantize = Quantization{64, 8}});
    CHECK(codes.widened == 1);
    const auto wanted = mx::quantize(values, 64, 8);
    CHECK(mx::array_equal(tensor_of(codes, "lm_head.weight"), wanted[0]).item<bool>());
    CHECK(mx::array_equal(tensor_of(codes, "lm_head.scales"), wanted[1]).item<bool>());
  }
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
