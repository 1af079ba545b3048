// Other tools' packings as MLX's, and what config.json may say of quantization.
#include "models/quant_formats.h"

#include "base/error.h"
#include "nn/linear.h"

#include <boost/json/parse.hpp>
#include <doctest/doctest.h>

#include <cmath>
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
      {R"({"quantization_config": {"quant_method": "awq", "bits": 8}})", "must have 4 bits; got 8"},
      {R"({"quantization_config": {"quant_method": "awq"}})", "no tensor is a .qweight"},
      {R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}})",
       "got 'float-quantized'"},
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
          .find("l.g_idx: GPTQ weights with group indices") != std::string::npos);
  CHECK(message(gptq, {{"l.qweight", words}}).find("l.scales is missing") != std::string::npos);
  CHECK(
      message(gptq, {{"l.qweight", words}, {"l.scales", mx::ones({1, 8})}}).find("l.qweight must be int32") !=
      std::string::npos);
}

TEST_CASE("quantization: compressed-tensors' int4 and mxfp4") {
  const int n = 4, k = 64;
  const auto q = mx::quantize(mx::random::normal({n, k}), 32, 4, "affine");
  Arrays int4{
      {"l.weight_packed", mx::view(q[0], mx::int32)},
      {"l.weight_scale", q[1]},
      {"l.weight_shape", mx::array({n, k})},
      {"l.bias", mx::zeros({n})}};
  const auto how = read_quantizations(
      config_of(R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized",
                    "config_groups": {"group_0": {"weights": {"num_bits": 4, "symmetric": true}}}}})"),
      int4);
  CHECK(int4.size() == 4);
  const auto w = floats(unpacked(int4, "l", {32, 4}));
  const auto codes = floats(mx::dequantize(q[0], mx::ones({n, k / 32}), mx::zeros({n, k / 32}), 32, 4));
  const auto scales = floats(q[1]);
  for (int i = 0; i < n * k; ++i) {
    CHECK(w[i] == doctest::Approx((codes[i] - 8) * scales[i / 32]));
  }
  CHECK(how.all->bits == 4);

  const auto small = mx::quantize(mx::random::normal({n, k}), 32, 4, "mxfp4");
  Arrays mxfp4{{"l.weight_packed", mx::view(small[0], mx::uint8)}, {"l.weight_scale", small[1]}};
  const auto kind = read_quantizations(
      config_of(R"({"quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}})"),
      mxfp4);
  CHECK(kind.all == Quantization{32, 4, "mxfp4"});
  CHECK(floats(unpacked(mxfp4, "l", *kind.all)) == floats(mx::dequantize(small[0], small[1], {}, 32, 4, "mxfp4")));
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
          .find("l.weight_scale_inv must hold a scale") != std::string::npos);
}

} // namespace parallm
