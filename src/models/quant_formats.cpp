#include "models/quant_formats.h"

#include "base/error.h"
#include "nn/linear.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace parallm {

namespace {

using Arrays = std::unordered_map<std::string, mx::array>;

const std::string where = "[open_checkpoint]";

std::optional<int> optional_count(const Config& options, const char* name) {
  return options.has(name) ? std::optional(options.count(name)) : std::nullopt;
}

/** One kind for all, and per layer an object, true or false. What an object leaves out is the mode's default, and the
 * mode's is affine, whatever the others are (as mlx-lm passes it to to_quantized). */
Quantizations mlx_quantizations(const Config& options) {
  Quantizations out;
  out.all = make_quantization(
      where + " " + options.where, options.text("mode", "affine"), options.count("group_size"), options.count("bits"));
  for (auto& [layer, value] : options.json) {
    if (value.is_object()) {
      auto own = options.object(layer);
      out.layers[layer] = make_quantization(
          where + " " + own.where,
          own.text("mode", "affine"),
          optional_count(own, "group_size"),
          optional_count(own, "bits"));
    } else if (value.is_bool()) {
      out.layers[layer] = value.get_bool() ? out.all : std::nullopt;
    }
  }
  return out;
}

std::vector<std::string> names_ending(const Arrays& arrays, std::string_view end) {
  std::vector<std::string> names;
  for (auto& [name, array] : arrays) {
    if (name.ends_with(end)) {
      names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

/** Takes the tensor out. */
mx::array pop(Arrays& arrays, const std::string& name, size_t axes, const std::string& owner) {
  auto found = arrays.find(name);
  if (found == arrays.end()) {
    fail(Kind::invalid, "{} {} is missing, which belongs to {}", where, name, owner);
  }
  if (found->second.ndim() != axes) {
    fail(Kind::invalid, "{} {} must have {} axes; got {}", where, name, axes, found->second.ndim());
  }
  auto array = std::move(found->second);
  arrays.erase(found);
  return array;
}

/** AWQ's int32 words of 8 4-bit numbers, in the order 0 2 4 6 1 3 5 7 (AutoAWQ's packing): [A,B] -> [A,8B]. */
mx::array unpack_awq(const mx::array& words) {
  auto shifts = mx::multiply(mx::array({0, 4, 1, 5, 2, 6, 3, 7}, mx::uint32), mx::array(4, mx::uint32));
  auto spread = mx::right_shift(mx::expand_dims(mx::view(words, mx::uint32), 2), shifts);
  auto codes = mx::bitwise_and(spread, mx::array(15, mx::uint32));
  return mx::reshape(codes, {words.shape(0), words.shape(1) * 8});
}

/** [N,K] numbers of `bits` bits -> words [N,K*bits/32], the first in the lowest bits. */
mx::array pack(const mx::array& codes, int bits) {
  const int each = 32 / bits;
  auto words = mx::reshape(codes, {codes.shape(0), codes.shape(1) / each, each});
  auto shifts = mx::multiply(mx::arange(0, each, mx::uint32), mx::array(bits, mx::uint32));
  return mx::astype(mx::sum(mx::left_shift(words, shifts), 2), mx::uint32);
}

/** qweight [K,N/8], scales [groups,N], qzeros [groups,N/8]: weight = (code - zero) * scale. Without qzeros the zero is
 * 8. */
Quantization put_awq(
    Arrays& arrays,
    const std::string& layer,
    const mx::array& qweight,
    const mx::array& scales,
    const std::optional<mx::array>& qzeros) {
  auto factors = mx::transpose(scales); // [N,groups]
  auto zeros = mx::array(-8.0f);
  if (qzeros) {
    zeros = mx::negative(mx::astype(mx::transpose(unpack_awq(*qzeros)), mx::float32));
  }
  auto biases = mx::astype(mx::multiply(zeros, factors), scales.dtype());
  arrays.insert_or_assign(layer + ".weight", pack(mx::transpose(unpack_awq(qweight)), 4));
  arrays.insert_or_assign(layer + ".biases", biases);
  arrays.insert_or_assign(layer + ".scales", mx::contiguous(factors));
  return make_quantization(where + " " + layer, "affine", qweight.shape(0) / std::max(scales.shape(0), 1), 4);
}

/** GPTQ's own layout: qweight [K*bits/32,N] and qzeros [groups,N*bits/32] hold their codes one after another, down and
 * across, which down is MLX's order; scales [groups,N]. Zeros are one less than they are, but for the second version of
 * the format. More than 128 inputs that share a scale become several groups. */
Quantization put_gptq(
    Arrays& arrays,
    const std::string& layer,
    const mx::array& qweight,
    const mx::array& scales,
    const mx::array& qzeros,
    int bits,
    bool less_one) {
  const int inputs = qweight.shape(0) * 32 / bits, groups = scales.shape(0), outputs = scales.shape(1);
  if (groups == 0 || inputs % groups != 0 || outputs % 32 != 0 ||
      qzeros.shape() != mx::Shape{groups, outputs * bits / 32}) {
    fail(
        Kind::invalid,
        "{} {} must have zeros of {} bits for [{}, {}] scales, as GPTQ packs them",
        where,
        layer,
        bits,
        groups,
        outputs);
  }
  const int shared = inputs / groups, group = std::min(shared, 128);
  const auto kind = make_quantization(where + " " + layer, "affine", group, bits);
  auto ones = mx::ones({groups, outputs / 32});
  auto zeros = mx::dequantize(mx::view(qzeros, mx::uint32), ones, mx::zeros_like(ones), 32, bits);
  if (less_one) {
    zeros = mx::remainder(zeros + mx::array(1.0f), mx::array(float(1 << bits)));
  }
  const auto for_rows = [&](const mx::array& x) {
    auto rows = mx::transpose(x); // [N,groups]
    return mx::contiguous(shared > group ? mx::repeat(rows, shared / group, 1) : rows);
  };
  auto biases = mx::astype(mx::negative(zeros) * mx::astype(scales, mx::float32), scales.dtype());
  arrays.insert_or_assign(layer + ".weight", mx::contiguous(mx::transpose(mx::view(qweight, mx::uint32))));
  arrays.insert_or_assign(layer + ".scales", for_rows(scales));
  arrays.insert_or_assign(layer + ".biases", for_rows(biases));
  return kind;
}

/** Whether input i is in group i / (inputs of a group). */
bool in_order(mx::array indices, int groups) {
  const int count = indices.size();
  indices = mx::flatten(mx::astype(indices, mx::int32));
  auto wanted = mx::floor_divide(mx::arange(count), mx::array(count / std::max(groups, 1)));
  return count > 0 && mx::array_equal(indices, wanted).item<bool>();
}

/** AWQ's layout, which mlx-lm reads under the name of GPTQ too, and GPTQ's own. All other floats get the scales' dtype,
 * as in mlx-lm. */
Quantizations from_awq(const Config& options, Arrays& arrays) {
  const int bits = options.count("bits", 4);
  Quantizations out;
  std::optional<mx::Dtype> dtype;
  for (auto& name : names_ending(arrays, ".qweight")) {
    auto layer = name.substr(0, name.size() - 8);
    auto qweight = pop(arrays, name, 2, layer), scales = pop(arrays, layer + ".scales", 2, layer);
    std::optional<mx::array> qzeros, indices;
    if (arrays.contains(layer + ".qzeros")) {
      qzeros = pop(arrays, layer + ".qzeros", 2, layer);
    }
    if (arrays.contains(layer + ".g_idx")) {
      indices = pop(arrays, layer + ".g_idx", 1, layer);
    }
    const bool gptq = qzeros && scales.shape(1) == qweight.shape(1);
    if (indices && (!gptq || !in_order(*indices, scales.shape(0)))) {
      fail(
          Kind::invalid,
          "{} {}.g_idx: weights in another order than their groups can't be loaded; take an MLX or AWQ version of the "
          "model, or convert its unquantized one",
          where,
          layer);
    }
    if (!gptq && bits != 4) {
      fail(Kind::invalid, "{} '{}': AWQ weights must have 4 bits; got {}", where, options.where, bits);
    }
    if (qweight.dtype() != mx::int32 ||
        (!gptq && (scales.shape(1) != qweight.shape(1) * 8 || qweight.shape(0) % 8 != 0))) {
      fail(
          Kind::invalid,
          "{} {} must be int32 [inputs, outputs/8] with {} outputs, as AWQ packs them; got [{}, {}]",
          where,
          name,
          scales.shape(1),
          qweight.shape(0),
          qweight.shape(1));
    }
    const bool less_one = options.text("checkpoint_format", "gptq") != "gptq_v2";
    out.all = gptq ? put_gptq(arrays, layer, qweight, scales, *qzeros, bits, less_one)
                   : put_awq(arrays, layer, qweight, scales, qzeros);
    dtype = scales.dtype();
  }
  if (!dtype) {
    fail(
        Kind::invalid,
        "{} '{}' names {}, but no tensor is a .qweight",
        where,
        options.where,
        options.text("quant_method"));
  }
  for (auto& [name, array] : arrays) {
    if (mx::issubdtype(array.dtype(), mx::floating)) {
      array = mx::astype(array, *dtype);
    }
  }
  return out;
}

bool is_bytes(const mx::array& x) {
  return x.dtype() == mx::uint8; // float8 too: MLX has no such type
}

/** A layer is what `kind` says, [N,K] as MLX packs it and one scale a group. */
Quantization put_layer(
    Arrays& arrays,
    const std::string& layer,
    const mx::array& packed,
    const mx::array& scales,
    const Quantization& kind) {
  const int bytes = packed.shape(1) * static_cast<int>(packed.itemsize()), inputs = bytes * 8 / kind.bits;
  if (bytes % 4 != 0 || scales.shape() != mx::Shape{packed.shape(0), inputs / kind.group_size}) {
    fail(
        Kind::invalid,
        "{} {} must have a scale for each {} inputs of each output; got [{}, {}] for [{}, {}]",
        where,
        layer,
        kind.group_size,
        scales.shape(0),
        scales.shape(1),
        packed.shape(0),
        inputs);
  }
  arrays.insert_or_assign(layer + ".weight", mx::view(packed, mx::uint32));
  arrays.insert_or_assign(layer + ".scales", scales);
  return kind;
}

/** Codes two in a byte [N,K/2], scales e4m3 [N,K/16], and `factor` of all scales, float32. */
Quantization put_nvfp4(
    Arrays& arrays,
    const std::string& layer,
    const mx::array& codes,
    const mx::array& scales,
    const mx::array& factor) {
  if (!is_bytes(codes) || !is_bytes(scales) || factor.size() != 1) {
    fail(Kind::invalid, "{} {} must have NVFP4's bytes, byte scales and one global scale", where, layer);
  }
  auto unit = mx::multiply(mx::astype(mx::reshape(factor, {}), mx::float32), mx::array(global_scale_unit));
  arrays.insert_or_assign(layer + ".global_scale", unit);
  return put_layer(arrays, layer, codes, scales, {16, 4, "nvfp4"});
}

/** e8m0, a byte each: powers of 2. */
mx::array from_exponents(const mx::array& bytes) {
  return mx::power(mx::array(2.0f), mx::astype(bytes, mx::float32) - mx::array(127.0f));
}

/** e4m3 bytes [N,K], or [E,N,K], times the scales, in bfloat16: one for all, one a row or matrix (they broadcast), or
 * one a block of side x side (as the sanitize of mlx-lm's models does, deepseek_v3.py, mistral4.py). */
mx::array from_float8(const std::string& name, const mx::array& bytes, mx::array scale, int side) {
  if (is_bytes(scale)) {
    scale = from_exponents(scale);
  }
  const int n = bytes.shape(-2), k = bytes.shape(-1), rows = (n + side - 1) / side, columns = (k + side - 1) / side;
  bool broadcasts = scale.ndim() <= bytes.ndim();
  for (int axis = 1; broadcasts && axis <= static_cast<int>(scale.ndim()); ++axis) {
    broadcasts = scale.shape(-axis) == 1 || (axis > 1 && scale.shape(-axis) == bytes.shape(-axis));
  }
  if (scale.size() == 1) {
    scale = mx::reshape(scale, {});
  } else if (is_bytes(bytes) && !broadcasts && bytes.ndim() == 2 && scale.shape() == mx::Shape{rows, columns}) {
    scale = mx::slice(mx::repeat(mx::repeat(scale, side, 0), side, 1), {0, 0}, {n, k});
  } else if (!is_bytes(bytes) || !broadcasts) {
    fail(Kind::invalid, "{} {} must be float8 with a scale for each block of {} x {}", where, name, side, side);
  }
  return mx::astype(mx::multiply(mx::from_fp8(bytes, mx::bfloat16), scale), mx::bfloat16);
}

/** Of float8 activations and keys and values, which we don't have. */
void drop_activations(Arrays& arrays) {
  for (auto end : {"activation_scale", "input_scale", ".input_global_scale", ".k_scale", ".v_scale", ".q_scale"}) {
    for (auto& name : names_ending(arrays, end)) {
      arrays.erase(name);
    }
  }
}

/** A weight of bytes and `scale`: e8m0 ones make mxfp8, others bfloat16. */
std::optional<Quantization>
put_float8(Arrays& arrays, const std::string& layer, const mx::array& weight, const mx::array& scale, int side) {
  if (is_bytes(weight) && is_bytes(scale) && scale.ndim() == 2 && scale.shape(1) * 32 == weight.shape(1)) {
    return put_layer(arrays, layer, weight, scale, {32, 8, "mxfp8"});
  }
  auto rows = scale.ndim() == 1 && scale.size() > 1 ? mx::expand_dims(scale, 1) : scale;
  arrays.insert_or_assign(layer + ".weight", from_float8(layer + ".weight", weight, rows, side));
  return {};
}

/** int32 [N,K/8] holds code + 8 in MLX's order, scales [N,groups]. */
Quantization put_int4(Arrays& arrays, const std::string& layer, const mx::array& packed, const mx::array& scales) {
  const int inputs = packed.shape(1) * 8, group = inputs / std::max(scales.shape(1), 1);
  const auto kind = make_quantization(where + " " + layer, "affine", group, 4);
  arrays.insert_or_assign(layer + ".biases", mx::multiply(mx::array(-8.0f, scales.dtype()), scales));
  return put_layer(arrays, layer, packed, scales, kind);
}

/** weight_packed beside weight_scale. */
Quantization put_packed(Arrays& arrays, const std::string& layer, const mx::array& packed, const mx::array& scales) {
  if (arrays.contains(layer + ".weight_global_scale")) { // a divisor
    auto divisor = std::move(arrays.at(layer + ".weight_global_scale"));
    arrays.erase(layer + ".weight_global_scale");
    return put_nvfp4(arrays, layer, packed, scales, mx::reciprocal(mx::astype(divisor, mx::float32)));
  }
  if (is_bytes(scales)) {
    return put_layer(arrays, layer, packed, scales, {32, 4, "mxfp4"});
  }
  return put_int4(arrays, layer, packed, scales);
}

constexpr const char* compressed_formats[] = {
    "pack-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "float-quantized",
    "naive-quantized", // of float8
    "mixed-precision"};

/** Each layer's tensors say how it is packed; config.json, what can't be told from them. */
Quantizations from_compressed_tensors(const Config& options, Arrays& arrays) {
  auto format = options.text("format");
  if (std::find(std::begin(compressed_formats), std::end(compressed_formats), format) == std::end(compressed_formats)) {
    fail(
        Kind::invalid,
        "{} '{}': compressed-tensors' format must be one of {}; got '{}'",
        where,
        options.where,
        fmt::join(compressed_formats, ", "),
        format);
  }
  int side = 128;
  if (options.has("config_groups")) {
    auto groups = options.object("config_groups");
    for (auto& [name, value] : groups.json) {
      auto weights = groups.object(name).object("weights");
      bool integers = weights.text("type", "int") == "int";
      if ((integers && weights.count("num_bits") != 4) || !weights.boolean("symmetric", true)) {
        fail(
            Kind::invalid,
            "{} '{}': only symmetric weights of 4 bits or small floats can be loaded",
            where,
            weights.where);
      }
      if (weights.has("block_structure")) {
        side = weights.integers("block_structure").at(0);
      }
    }
  }
  Quantizations out;
  for (auto& name : names_ending(arrays, ".weight_scale")) {
    auto layer = name.substr(0, name.size() - 13);
    auto scale = std::move(arrays.at(name));
    arrays.erase(name);
    auto packed = layer + ".weight_packed";
    auto kind = arrays.contains(packed)
        ? put_packed(arrays, layer, pop(arrays, packed, 2, layer), scale)
        : put_float8(arrays, layer, pop(arrays, layer + ".weight", 2, layer), scale, side);
    arrays.erase(layer + ".weight_shape");
    out.all = kind ? kind : out.all;
  }
  drop_activations(arrays);
  return out;
}

/** Experts [E,N,K/2] in one tensor, as Muse Spark's repository has them: scales [E,N,K/16], factors [E]; gate and up
 * one above the other, with factors [E,2] (mlx-lm's muse_spark.py). */
void put_nvfp4_experts(
    Arrays& arrays,
    const std::string& layer,
    const mx::array& codes,
    const mx::array& scales,
    const mx::array& factors) {
  const std::string both = "gate_up_proj";
  const bool two = layer.ends_with(both);
  const int count = codes.shape(0);
  if (!is_bytes(codes) || !is_bytes(scales) || scales.shape() != mx::Shape{count, codes.shape(1), codes.shape(2) / 8} ||
      factors.size() != size_t(count) * (two ? 2 : 1)) {
    fail(Kind::invalid, "{} {} must have NVFP4's bytes, byte scales and a global scale for each expert", where, layer);
  }
  auto global = mx::reshape(mx::astype(factors, mx::float32), {count, -1}) * mx::array(global_scale_unit);
  const auto put = [&](const std::string& name, int part) {
    const int rows = codes.shape(1) / (two ? 2 : 1), first = part * rows;
    const auto cut = [&](const mx::array& x) {
      return mx::contiguous(mx::slice(x, {0, first, 0}, {count, first + rows, x.shape(2)}));
    };
    arrays.insert_or_assign(name + ".weight", mx::view(cut(codes), mx::uint32));
    arrays.insert_or_assign(name + ".scales", cut(scales));
    arrays.insert_or_assign(name + ".global_scale", mx::take(global, part, 1));
  };
  if (!two) {
    return put(layer, 0);
  }
  const auto stem = layer.substr(0, layer.size() - both.size());
  put(stem + "gate_proj", 0);
  put(stem + "up_proj", 1);
}

/** NVIDIA's Model Optimizer: weight_scale_2 is a factor of all of NVFP4's scales; without it weights are float8. */
Quantizations from_modelopt(const Config& options, Arrays& arrays) {
  auto settings = options.has("quantization") ? options.object("quantization") : options; // of hf_quant_config.json
  auto algorithm = settings.text("quant_algo");
  constexpr const char* known[] = {
      "NVFP4", "W4A16_NVFP4", "FP8", "FP8_PER_CHANNEL_PER_TOKEN", "MXFP8", "MIXED_PRECISION"};
  if (std::find(std::begin(known), std::end(known), algorithm) == std::end(known)) {
    fail(
        Kind::invalid,
        "{} '{}': modelopt's quant_algo must be one of {}; got '{}'",
        where,
        settings.where,
        fmt::join(known, ", "),
        algorithm);
  }
  Quantizations out;
  for (auto& name : names_ending(arrays, ".weight_scale")) {
    auto layer = name.substr(0, name.size() - 13);
    auto scale = std::move(arrays.at(name));
    arrays.erase(name);
    auto weight = pop(arrays, layer + ".weight", 2, layer);
    auto second = arrays.find(layer + ".weight_scale_2");
    if (second == arrays.end()) {
      auto kind = put_float8(arrays, layer, weight, scale, 128);
      out.all = kind ? kind : out.all;
      continue;
    }
    auto factor = std::move(second->second);
    arrays.erase(second);
    out.all = put_nvfp4(arrays, layer, weight, scale, factor);
  }
  for (auto& name : names_ending(arrays, "_proj_weight_scale")) {
    auto layer = name.substr(0, name.size() - 13);
    auto scale = pop(arrays, name, 3, layer), weight = pop(arrays, layer, 3, layer);
    auto factor = pop(arrays, layer + "_weight_scale_2", layer.ends_with("gate_up_proj") ? 2 : 1, layer);
    put_nvfp4_experts(arrays, layer, weight, scale, factor);
    out.all = Quantization{16, 4, "nvfp4"};
  }
  drop_activations(arrays);
  return out;
}

/** The scales of blocks of 32 x 32, which are powers of 2, as mxfp8's bytes, one for each row. */
mx::array row_exponents(const mx::array& scales, int rows) {
  auto bytes = is_bytes(scales)
      ? scales
      : mx::astype(mx::round(mx::log2(mx::astype(scales, mx::float32))) + mx::array(127.0f), mx::uint8);
  auto all = mx::repeat(bytes, 32, 0);
  return mx::contiguous(mx::slice(all, {0, 0}, {rows, scales.shape(1)}));
}

Quantizations from_fp8(const Config& options, Arrays& arrays) {
  int block = 128;
  if (options.has("weight_block_size")) {
    auto sizes = options.integers("weight_block_size");
    block = sizes.empty() ? 0 : sizes[0];
    if (sizes.size() != 2 || sizes[0] != sizes[1] || block <= 0) {
      fail(Kind::invalid, "{} '{}': 'weight_block_size' must be two equal sizes", where, options.where);
    }
  }
  const bool packed = block == 32 && options.text("scale_fmt", "") == "ue8m0"; // mxfp8, which stays as it is
  Quantizations out;
  if (packed) { // also of names that only the model's file knows; each layer's tensors tell whether and how
    out.all = Quantization{32, 8, "mxfp8"};
  }
  for (auto& name : names_ending(arrays, "_scale_inv")) {
    auto tensor = name.substr(0, name.size() - 10);
    auto scale = std::move(arrays.at(name));
    arrays.erase(name);
    auto weight = pop(arrays, tensor, tensor.ends_with(".weight") ? 2 : 3, name);
    if (packed && tensor.ends_with(".weight") && scale.ndim() == 2) {
      auto layer = tensor.substr(0, tensor.size() - 7);
      put_layer(arrays, layer, weight, row_exponents(scale, weight.shape(0)), *out.all);
    } else {
      arrays.insert_or_assign(tensor, from_float8(name, weight, scale, block));
    }
  }
  drop_activations(arrays);
  return out;
}

/** Ternary layers to codes of 2 bits, whose kind is put into `out`. weight uint8 [N/4,K] holds in its bits 2i and
 * 2i+1 row i*N/4 + r's number + 1, each -1, 0 or 1; weight_scale [1] is a factor (transformers' AutoBitLinear) or a
 * divisor (its BitLinear, and where nothing is said). */
Quantizations unpack_ternary(Arrays& arrays, bool divides, Quantizations out = {}) {
  auto names = names_ending(arrays, ".weight_scale");
  const auto layer_of = [](const std::string& name) { return name.substr(0, name.size() - 13); };
  int group = 128; // the most that divides all layers' inputs
  for (auto& name : names) {
    auto weight = arrays.find(layer_of(name) + ".weight");
    while (group > 32 && weight != arrays.end() && weight->second.shape(-1) % group != 0) {
      group /= 2;
    }
  }
  for (auto& name : names) {
    auto layer = layer_of(name);
    auto scale = pop(arrays, name, 1, layer), bytes = pop(arrays, layer + ".weight", 2, layer);
    if (bytes.dtype() != mx::uint8 || scale.size() != 1 || bytes.shape(1) % group != 0) {
      fail(
          Kind::invalid,
          "{} {} must be one scale of uint8 weights [outputs/4, inputs], a multiple of {} inputs",
          where,
          name,
          group);
    }
    std::vector<mx::array> quarters;
    for (int i : {0, 2, 4, 6}) {
      auto shifted = mx::right_shift(mx::astype(bytes, mx::uint32), mx::array(i, mx::uint32));
      quarters.push_back(mx::bitwise_and(shifted, mx::array(3, mx::uint32)));
    }
    auto codes = mx::concatenate(quarters, 0);
    auto factor = divides ? mx::reciprocal(mx::astype(scale, mx::float32)) : scale; // not rounded to 16 bits
    auto scales = mx::contiguous(mx::broadcast_to(factor, {codes.shape(0), codes.shape(1) / group}));
    arrays.insert_or_assign(layer + ".weight", pack(codes, 2));
    arrays.insert_or_assign(layer + ".biases", mx::negative(scales));
    arrays.insert_or_assign(layer + ".scales", scales);
    out.layers.insert_or_assign(layer, Quantization{group, 2});
  }
  return out;
}

Quantizations from_bitnet(const Config& options, Arrays& arrays) {
  return unpack_ternary(arrays, options.text("linear_class", "") != "autobitlinear");
}

/** mlx-lm's BitNet is ternary whatever config.json says, and always multiplies. */
Quantizations with_ternary(Quantizations said, const Config& config, Arrays& arrays) {
  return config.text("model_type", "") == "bitnet" ? unpack_ternary(arrays, false, std::move(said)) : said;
}

/** weight e4m3 [N,K], weight_scale_inv e8m0 [N,K/32]. */
Quantizations from_mxfp8(const Config&, Arrays& arrays) {
  const Quantization kind{32, 8, "mxfp8"};
  for (auto& name : names_ending(arrays, ".weight_scale_inv")) {
    auto layer = name.substr(0, name.size() - 17);
    auto scale = pop(arrays, name, 2, layer);
    put_layer(arrays, layer, pop(arrays, layer + ".weight", 2, layer), scale, kind);
  }
  return {kind, {}};
}

constexpr struct {
  const char* method;
  Quantizations (*read)(const Config&, Arrays&);
} methods[] = {
    {"awq", from_awq},
    {"bitnet", from_bitnet},
    {"gptq", from_awq},
    {"compressed-tensors", from_compressed_tensors},
    {"fp8", from_fp8},
    {"modelopt", from_modelopt},
    // gpt-oss; the model's file knows how its tensors lie.
    {"mxfp4",
     [](const Config&, Arrays&) {
       return Quantizations{Quantization{32, 4, "mxfp4"}, {}};
     }},
    {"mxfp8", from_mxfp8},
};

} // namespace

Quantizations read_quantizations(const Config& config, Arrays& arrays) {
  if (config.boolean("quantize_activations", false)) {
    fail(Kind::invalid, "{} {}: 'quantize_activations' is not supported", where, config.where);
  }
  if (config.has("quantization")) {
    return with_ternary(mlx_quantizations(config.object("quantization")), config, arrays);
  }
  if (!config.has("quantization_config")) { // repositories of several parts say it of their text model
    return config.has("text_config") ? read_quantizations(config.object("text_config"), arrays)
                                     : with_ternary({}, config, arrays);
  }
  auto options = config.object("quantization_config");
  if (!options.has("quant_method")) {
    return mlx_quantizations(options);
  }
  auto method = options.text("quant_method");
  std::string known;
  for (auto& m : methods) {
    if (method == m.method) {
      return m.read(options, arrays);
    }
    known += (known.empty() ? "" : ", ") + std::string(m.method);
  }
  fail(Kind::invalid, "{} '{}': 'quant_method' must be one of {}; got '{}'", where, options.where, known, method);
}

} // namespace parallm
