// Other tools' packings as MLX's, and what config.json may say of quantization.
#include "models/quant_formats.h"

#include "base/error.h"
#include "golden.h"
#include "models/convert.h"
#include "models/safetensors.h"
#include "nn/moe.h"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <doctest/doctest.h>

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <vector>

namespace parallm {

namespace {

using Arrays = std::unordered_map<std::string, mx::array>;

Config config_of(const std::string& text) {
  return {boost::json::parse(text).as_object()};
}

std::string message(const std::string& config, Arrays arrays = {}) {
  try {
    read_quantizations(config_of(config), arrays);
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

std::vector<float> floats(mx::array x) {
  x = mx::contiguous(mx::astype(x, mx::float32));
  mx::eval(x);
  return {x.data<float>(), x.data<float>() + x.size()};
}

mx::array unpacked(const Arrays& arrays, const std::string& layer, const Quantization& how) {
  auto biases = arrays.find(layer + ".biases");
  return dequantize(
      arrays.at(layer + ".weight"),
      arrays.at(layer + ".scales"),
      biases == arrays.end() ? std::nullopt : std::optional(biases->second),
      how,
      mx::float32);
}

} // namespace

TEST_CASE("quantization: MLX's own, by layer; what an object leaves out is its mode's") {
  Arrays none;
  const auto all = read_quantizations(
      config_of(R"({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4", "a": {"bits": 8}, "b": false,
                    "c": true, "d": {"mode": "nvfp4"}}})"),
      none);
  CHECK(all.all == Quantization{32, 4, "mxfp4"});
  CHECK(all.layers.at("a") == Quantization{64, 8, "affine"});
  CHECK(all.layers.at("b") == std::nullopt);
  CHECK(all.layers.at("c") == Quantization{32, 4, "mxfp4"});
  CHECK(all.layers.at("d") == Quantization{16, 4, "nvfp4"});
  const auto copy = read_quantizations(config_of(R"({"quantization_config": {"group_size": 128, "bits": 2}})"), none);
  CHECK(copy.all == Quantization{128, 2, "affine"});
  CHECK(!read_quantizations(config_of("{}"), none).all);
}

TEST_CASE("quantization: what can't be loaded is named") {
  const std::vector<std::pair<std::string, std::string>> cases{
      {R"({"quantization": {"group_size": 64, "bits": 7}})", "'bits' of mode affine must be one of"},
      {R"({"quantization": {"group_size": 48, "bits": 4}})", "'group_size' of mode affine must be one of"},
      {R"({"quantization": {"group_size": 32, "bits": 4, "mode": "nf4"}})", "'mode' must be one of affine, mxfp4"},
      {R"({"quantization": {"bits": 4}})", "'group_size' is missing"},
      {R"({"quantization": {"group_size": 64, "bits": 4, "l.0": {"bits": 9}}})", "l.0 'bits'"},
      {R"({"quantization_config": {"quant_method": "hqq"}})",
       "one of awq, bitnet, gptq, compressed-tensors, fp8, modelopt, mxfp4, mxfp8; got 'hqq'"},
      {R"({"quantization_config": {"quant_method": "awq"}})", "no tensor is a .qweight"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "int-quantized"}})",
       "got 'int-quantized'"},
      {R"({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}})", "got 'NVFP4_AWQ'"},
      {R"({"quantize_activations": true})", "'quantize_activations' is not supported"}};
  for (const auto& [config, said] : cases) {
    const auto text = message(config);
    CAPTURE(text);
    CHECK(text.find(said) != std::string::npos);
  }
  const std::string gptq = R"({"quantization_config": {"quant_method": "gptq", "bits": 4}})";
  const auto words = mx::zeros({16, 2}, mx::int32), scales = mx::ones({1, 16}, mx::float16);
  CHECK(
      message(gptq, {{"l.qweight", words}, {"l.scales", scales}, {"l.g_idx", mx::zeros({16}, mx::int32)}})
          .find("l.g_idx: weights in another order than their groups") != std::string::npos);
  const Arrays own{
      {"l.qweight", mx::zeros({16, 32}, mx::int32)},
      {"l.scales", mx::ones({1, 32}, mx::float16)},
      {"l.qzeros", mx::zeros({1, 4}, mx::int32)}};
  CHECK(message(gptq, own) == "no error");
  auto turned = own;
  turned.emplace("l.g_idx", mx::subtract(mx::array(1), mx::minimum(mx::arange(128), mx::array(1))));
  CHECK(message(gptq, turned).find("l.g_idx: weights in another order") != std::string::npos);
  const std::string awq = R"({"quantization_config": {"quant_method": "awq", "bits": 8}})";
  CHECK(
      message(awq, {{"l.qweight", words}, {"l.scales", scales}}).find("must have 4 bits; got 8") != std::string::npos);
  CHECK(message(gptq, {{"l.qweight", words}}).find("l.scales is missing") != std::string::npos);
  CHECK(
      message(gptq, {{"l.qweight", words}, {"l.scales", mx::ones({1, 8})}}).find("l.qweight must be int32") !=
      std::string::npos);
}

TEST_CASE("quantization: layers as other tools pack them are what those tools unpack") {
  const std::filesystem::path folder = "tests/golden/quant_formats"; // tools/golden_quant_formats.py
  // The kind in MLX, and how far its weights may be from the tool's, of the greatest: where either rounds to bfloat16.
  const std::map<std::string, std::pair<std::optional<Quantization>, double>> formats{
      {"float8_block", {std::nullopt, 1.0 / 256}},
      {"float8_channel", {std::nullopt, 1.0 / 256}},
      {"gptq_2", {Quantization{64, 2, "affine"}, 1e-3}}, // zeros times scales in float16
      {"gptq_3", {Quantization{32, 3, "affine"}, 1e-3}},
      {"gptq_4", {Quantization{128, 4, "affine"}, 1e-3}},
      {"gptq_8", {Quantization{32, 8, "affine"}, 1e-3}},
      {"int4", {Quantization{128, 4, "affine"}, 1e-6}},
      {"modelopt_nvfp4", {Quantization{16, 4, "nvfp4"}, 1e-6}},
      {"mxfp4", {Quantization{32, 4, "mxfp4"}, 1e-6}},
      {"mxfp8", {Quantization{32, 8, "mxfp8"}, 1e-6}},
      {"nvfp4", {Quantization{16, 4, "nvfp4"}, 1.0 / 256}}};
  for (const auto& [name, kind] : formats) {
    CAPTURE(name);
    auto arrays = read_safetensors((folder / (name + ".safetensors")).string());
    const auto expected = arrays.at("expected");
    arrays.erase("expected");
    auto how = read_quantizations(read_config((folder / (name + ".json")).string()), arrays);
    CHECK(how.all == kind.first);
    for (bool mlx_ops : {true, false}) {
      test::MlxOps ops(mlx_ops);
      Weights weights(arrays, how, mx::float32);
      const int n = expected.shape(0), k = expected.shape(1);
      const Linear layer(weights, "l", n, k);
      weights.finish(); // nothing is left over
      const auto product = mx::transpose(layer(mx::eye(k))); // the weights
      const auto most = floats(mx::max(mx::abs(mx::subtract(product, expected))))[0];
      CHECK(most <= kind.second * floats(mx::max(mx::abs(expected)))[0]);
    }
  }
}

TEST_CASE("quantization: Model Optimizer's NVFP4, by a file of its own, gives mlx-lm's logits, converted too") {
  const auto source = test::golden_folder / "llama_nvfp4";
  const auto folder = std::filesystem::temp_directory_path() / fmt::format("parallm_modelopt_{}", ::getpid());
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder / "converted");
  auto arrays = read_safetensors((source / "model.safetensors").string());
  std::vector<NamedArray> tensors;
  size_t layers = 0;
  for (const auto& [name, array] : arrays) {
    const auto layer = name.substr(0, name.rfind('.'));
    if (name.ends_with(".scales")) {
      tensors.push_back({layer + ".weight_scale", array});
      tensors.push_back({layer + ".weight_scale_2", mx::array(1.0f)});
      ++layers;
    } else {
      tensors.push_back({name, arrays.contains(layer + ".scales") ? mx::view(array, mx::uint8) : array});
    }
  }
  write_safetensors((folder / "model.safetensors").string(), tensors);
  auto config = read_config((source / "config.json").string()).json;
  config.erase("quantization");
  config.erase("quantization_config");
  std::ofstream(folder / "config.json") << boost::json::serialize(config);
  std::ofstream(folder / "hf_quant_config.json")
      << R"({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "group_size": 16}})";
  const auto sequence = test::references("llama_nvfp4")[0];
  {
    test::Loaded loaded(folder.string());
    CHECK(test::difference(test::alone(loaded, sequence, 100), sequence) < 1e-4);
    auto model = convert_model(open_checkpoint(folder.string()), {});
    CHECK(model.widened == layers);
    write_model((folder / "converted").string(), std::move(model));
  }
  test::Loaded converted((folder / "converted").string());
  CHECK(test::difference(test::alone(converted, sequence, 100), sequence) < 1e-4);
  std::filesystem::remove_all(folder);
}

TEST_CASE("quantization: experts with global scales of their own") {
  const int experts = 3, n = 4, k = 64;
  Arrays arrays;
  std::vector<mx::array> dense;
  for (int e = 0; e < experts; ++e) {
    const auto w = mx::random::normal({n, k}) * mx::array(0.1f + e), greatest = mx::max(mx::abs(w));
    const auto q = mx::quantize(w, 16, 4, "nvfp4", greatest);
    const auto layer = fmt::format("e.{}.", e);
    dense.push_back(mx::dequantize(q[0], q[1], {}, 16, 4, "nvfp4", greatest, mx::float32));
    arrays.insert_or_assign(layer + "weight", mx::view(q[0], mx::uint8));
    arrays.insert_or_assign(layer + "weight_scale", q[1]);
    arrays.insert_or_assign(layer + "weight_scale_2", greatest / mx::array(6.0f * 448));
  }
  const auto how = read_quantizations(
      config_of(R"({"quantization_config": {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4"}}})"),
      arrays);
  const auto x = mx::random::normal({6, k});
  const auto which = mx::array({0, 0, 1, 2, 2, 2});
  const auto expected = mx::squeeze(mx::matmul(mx::take(mx::stack(dense), which, 0), mx::expand_dims(x, 2)), 2);
  const auto check = [&](Weights& weights, const std::string& name, const mx::array& wanted) {
    const Experts all(weights, name, experts, n, k);
    const auto got = floats(all(x, which)), right = floats(wanted);
    for (size_t i = 0; i < got.size(); ++i) {
      CHECK(got[i] == doctest::Approx(right[i]).epsilon(1e-4));
    }
  };
  for (bool mlx_ops : {true, false}) {
    test::MlxOps ops(mlx_ops);
    Weights weights(arrays, how, mx::float32);
    weights.stack("e.{}", experts, "all");
    check(weights, "all", expected);
    weights.finish();
  }

  // Of one tensor, gate above up: here the second is the first with twice the factor.
  Weights apart(arrays, how, mx::float32);
  apart.stack("e.{}", experts, "all");
  const auto codes = mx::view(*apart.pull("all.weight"), mx::uint8), scales = *apart.pull("all.scales");
  const auto factors = *apart.pull("all.global_scale") / mx::array(6.0f * 448);
  Arrays fused{
      {"m.experts.gate_up_proj", mx::concatenate({codes, codes}, 1)},
      {"m.experts.gate_up_proj_weight_scale", mx::concatenate({scales, scales}, 1)},
      {"m.experts.gate_up_proj_weight_scale_2", mx::stack({factors, factors * mx::array(2.0f)}, 1)},
      {"m.experts.gate_up_proj_input_scale", mx::ones({experts})},
      {"m.experts.down_proj", codes},
      {"m.experts.down_proj_weight_scale", scales},
      {"m.experts.down_proj_weight_scale_2", factors}};
  const auto kind = read_quantizations(
      config_of(R"({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}})"), fused);
  Weights weights(fused, kind, mx::float32);
  check(weights, "m.experts.gate_proj", expected);
  check(weights, "m.experts.up_proj", expected * mx::array(2.0f));
  check(weights, "m.experts.down_proj", expected);
  weights.finish();
}

TEST_CASE("quantization: float8 with powers of 2 for blocks of 32 x 32 stays packed, as mxfp8") {
  const int n = 40, k = 96;
  const auto bytes = mx::to_fp8(mx::random::normal({n, k}));
  const auto exponents = mx::random::randint(-4, 4, {2, 3});
  const auto scale = mx::power(mx::array(2.0f), mx::astype(exponents, mx::float32));
  const auto config = config_of(
      R"({"quantization_config": {"quant_method": "fp8", "scale_fmt": "ue8m0", "weight_block_size": [32, 32]}})");
  for (bool as_bytes : {false, true}) {
    const auto stored = as_bytes ? mx::astype(exponents + mx::array(127), mx::uint8) : scale;
    Arrays arrays{{"l.weight", bytes}, {"l.weight_scale_inv", stored}};
    const auto how = read_quantizations(config, arrays);
    REQUIRE(how.all == Quantization{32, 8, "mxfp8"});
    const auto got = floats(unpacked(arrays, "l", *how.all)), raw = floats(mx::from_fp8(bytes, mx::float32));
    const auto s = floats(scale);
    for (int i = 0; i < n * k; ++i) {
      CHECK(got[i] == raw[i] * s[i / k / 32 * 3 + i % k / 32]);
    }
  }
}

TEST_CASE("quantization: float8 experts with a scale for each") {
  const auto bytes = mx::to_fp8(mx::random::normal({2, 3, 4}));
  Arrays arrays{
      {"experts.down_proj", bytes},
      {"experts.down_proj_scale_inv", mx::reshape(mx::array({0.5f, 2.0f}), {2, 1, 1})},
      {"experts.down_proj_activation_scale", mx::array(1.0f)}};
  read_quantizations(config_of(R"({"quantization_config": {"quant_method": "fp8"}})"), arrays);
  REQUIRE(arrays.size() == 1);
  const auto got = floats(arrays.at("experts.down_proj")), raw = floats(mx::from_fp8(bytes, mx::float32));
  for (int i = 0; i < 24; ++i) {
    CHECK(got[i] == raw[i] * (i < 12 ? 0.5f : 2.0f));
  }
}

TEST_CASE("quantization: float8 with a scale for each block becomes bfloat16") {
  const int n = 5, k = 7, block = 2;
  const auto bytes = mx::to_fp8(mx::random::normal({n, k}));
  const auto scale = mx::random::uniform({3, 4}, mx::float32);
  Arrays arrays{
      {"l.weight", bytes},
      {"l.weight_scale_inv", scale},
      {"l.input_scale", mx::ones({1})},
      {"norm.weight", mx::ones({k})}};
  const auto how = read_quantizations(
      config_of(R"({"quantization_config": {"quant_method": "fp8", "weight_block_size": [2, 2]}})"), arrays);
  CHECK(!how.all);
  CHECK(arrays.size() == 2);
  CHECK(arrays.at("l.weight").dtype() == mx::bfloat16);
  const auto got = floats(arrays.at("l.weight")), raw = floats(mx::from_fp8(bytes, mx::float32)), s = floats(scale);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < k; ++j) {
      CHECK(got[i * k + j] == doctest::Approx(raw[i * k + j] * s[i / block * 4 + j / block]).epsilon(0.01));
    }
  }
  Arrays wrong{{"l.weight", bytes}, {"l.weight_scale_inv", mx::ones({2, 2})}};
  CHECK(
      message(R"({"quantization_config": {"quant_method": "fp8"}})", wrong)
          .find("l.weight_scale_inv must be float8 with a scale for each block of 128 x 128") != std::string::npos);
}

} // namespace parallm
