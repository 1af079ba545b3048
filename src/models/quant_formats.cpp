#include "models/quant_formats.h"

#include "base/error.h"

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
 * 8. All other floats get the scales' dtype, as in mlx-lm. */
Quantizations from_awq(const Config& options, Arrays& arrays) {
  if (auto bits = options.count("bits", 4); bits != 4) {
    fail(Kind::invalid, "{} '{}': AWQ and GPTQ weights must have 4 bits; got {}", where, options.where, bits);
  }
  if (auto reordered = names_ending(arrays, ".g_idx"); !reordered.empty()) {
    fail(
        Kind::invalid,
        "{} {}: GPTQ weights with group indices can't be loaded; take an MLX or AWQ version of the model, or convert its "
        "unquantized one",
        where,
        reordered.front());
  }
  std::optional<mx::Dtype> dtype;
  for (auto& name : names_ending(arrays, ".qweight")) {
    auto layer = name.substr(0, name.size() - 8);
    auto qweight = pop(arrays, name, 2, layer);
    auto scales = mx::transpose(pop(arrays, layer + ".scales", 2, layer)); // [N,groups]
    if (qweight.dtype() != mx::int32 || scales.shape(0) != qweight.shape(1) * 8 || qweight.shape(0) % 8 != 0) {
      fail(
          Kind::invalid,
          "{} {} must be int32 [inputs, outputs/8] with {} outputs, as AWQ packs them; got [{}, {}]",
          where,
          name,
          scales.shape(0),
          qweight.shape(0),
          qweight.shape(1));
    }
    auto zeros = mx::array(-8.0f);
    if (arrays.contains(layer + ".qzeros")) {
      auto codes = unpack_awq(pop(arrays, layer + ".qzeros", 2, layer));
      zeros = mx::negative(mx::astype(mx::transpose(codes), mx::float32));
    }
    arrays.insert_or_assign(layer + ".weight", pack(mx::transpose(unpack_awq(qweight)), 4));
    arrays.insert_or_assign(layer + ".biases", mx::astype(mx::multiply(zeros, scales), scales.dtype()));
    arrays.insert_or_assign(layer + ".scales", mx::contiguous(scales));
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
  Quantizations out;
  out.all = make_quantization(where + " " + options.where, "affine", options.count("group_size", 128), 4);
  return out;
}

/** compressed-tensors' int4: weight_packed int32 [N,K/8] holds code + 8 in MLX's order, weight_scale [N,groups]. */
Quantizations from_int4(const Config&, Arrays& arrays) {
  for (auto& name : names_ending(arrays, ".weight_packed")) {
    auto layer = name.substr(0, name.size() - 14);
    auto packed = pop(arrays, name, 2, layer);
    auto scales = pop(arrays, layer + ".weight_scale", 2, layer);
    arrays.erase(layer + ".weight_shape");
    arrays.insert_or_assign(layer + ".weight", mx::view(packed, mx::uint32));
    arrays.insert_or_assign(layer + ".biases", mx::multiply(mx::array(-8.0f, scales.dtype()), scales));
    arrays.insert_or_assign(layer + ".scales", scales);
  }
  return {Quantization{32, 4, "affine"}, {}};
}

/** compressed-tensors' mxfp4: weight_packed uint8 [N,K/2], weight_scale uint8 [N,K/32]. */
Quantizations from_packed_mxfp4(const Config&, Arrays& arrays) {
  for (auto& name : names_ending(arrays, ".weight_packed")) {
    auto layer = name.substr(0, name.size() - 14);
    auto packed = pop(arrays, name, 2, layer);
    arrays.insert_or_assign(layer + ".scales", pop(arrays, layer + ".weight_scale", 2, layer));
    arrays.insert_or_assign(layer + ".weight", mx::view(packed, mx::uint32));
  }
  return {Quantization{32, 4, "mxfp4"}, {}};
}

Quantizations from_compressed_tensors(const Config& options, Arrays& arrays) {
  auto format = options.text("format");
  if (format == "mxfp4-pack-quantized") {
    return from_packed_mxfp4(options, arrays);
  }
  if (format != "pack-quantized") {
    fail(
        Kind::invalid,
        "{} '{}': compressed-tensors' format must be pack-quantized or mxfp4-pack-quantized; got '{}'",
        where,
        options.where,
        format);
  }
  if (options.has("config_groups")) {
    auto groups = options.object("config_groups");
    for (auto& [name, value] : groups.json) {
      auto weights = groups.object(name).object("weights");
      if (weights.count("num_bits") != 4 || !weights.boolean("symmetric", true)) {
        fail(Kind::invalid, "{} '{}': only symmetric weights of 4 bits can be loaded", where, weights.where);
      }
    }
  }
  return from_int4(options, arrays);
}

/** weight (e4m3 bytes) [N,K] times weight_scale_inv, one a block of 128 x 128 or one for all, in bfloat16 (as the
 * sanitize of mlx-lm's models does, deepseek_v3.py and ministral3.py). */
mx::array from_float8(const mx::array& bytes, const mx::array& scale, int block) {
  auto weight = mx::from_fp8(bytes, mx::bfloat16);
  if (scale.size() == 1) {
    return mx::astype(mx::multiply(weight, mx::reshape(scale, {})), mx::bfloat16);
  }
  int n = weight.shape(0), k = weight.shape(1);
  auto rows = mx::repeat(scale, block, 0), all = mx::repeat(rows, block, 1);
  return mx::astype(mx::multiply(weight, mx::slice(all, {0, 0}, {n, k})), mx::bfloat16);
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
  for (auto& name : names_ending(arrays, ".weight_scale_inv")) {
    auto layer = name.substr(0, name.size() - 17);
    auto scale = std::move(arrays.at(name));
    arrays.erase(name);
    auto bytes = pop(arrays, layer + ".weight", 2, layer);
    int rows = (bytes.shape(0) + block - 1) / block, columns = (bytes.shape(1) + block - 1) / block;
    if (bytes.dtype() != mx::uint8 || (scale.size() != 1 && scale.shape() != mx::Shape{rows, columns})) {
      fail(
          Kind::invalid, "{} {} must hold a scale for each block of {} x {} float8 weights", where, name, block, block);
    }
    arrays.insert_or_assign(layer + ".weight", from_float8(bytes, scale, block));
  }
  for (auto end : {".activation_scale", ".input_scale"}) { // of float8 activations, which we don't have
    for (auto& name : names_ending(arrays, end)) {
      arrays.erase(name);
    }
  }
  return {};
}

/** Ternary layers to codes of 2 bits; gives their kind, and their names. weight uint8 [N/4,K] holds in its bits 2i and
 * 2i+1 row i*N/4 + r's number + 1, each -1, 0 or 1; weight_scale [1] is a factor (transformers' AutoBitLinear) or a
 * divisor (its BitLinear, and where nothing is said). */
std::pair<Quantization, std::vector<std::string>> unpack_ternary(Arrays& arrays, bool divides) {
  auto names = names_ending(arrays, ".weight_scale");
  const auto layer_of = [](const std::string& name) { return name.substr(0, name.size() - 13); };
  int group = 128; // the most that divides all layers' inputs
  for (auto& name : names) {
    auto weight = arrays.find(layer_of(name) + ".weight");
    while (group > 32 && weight != arrays.end() && weight->second.shape(-1) % group != 0) {
      group /= 2;
    }
  }
  std::vector<std::string> layers;
  for (auto& name : names) {
    auto& layer = layers.emplace_back(layer_of(name));
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
  }
  return {Quantization{group, 2, "affine"}, layers};
}

Quantizations from_bitnet(const Config& options, Arrays& arrays) {
  return {unpack_ternary(arrays, options.text("linear_class", "") != "autobitlinear").first, {}};
}

/** mlx-lm's BitNet is ternary whatever config.json says, and always multiplies. */
Quantizations with_ternary(Quantizations said, const Config& config, Arrays& arrays) {
  if (config.text("model_type", "") == "bitnet") {
    auto [kind, layers] = unpack_ternary(arrays, false);
    for (auto& layer : layers) {
      said.layers.insert_or_assign(layer, kind);
    }
  }
  return said;
}

/** NVIDIA's ModelOpt; the model's file knows how its tensors lie. */
Quantizations from_modelopt(const Config& options, Arrays&) {
  auto settings = options.has("quantization") ? options.object("quantization") : options;
  if (auto algorithm = settings.text("quant_algo"); algorithm != "NVFP4") {
    fail(Kind::invalid, "{} '{}': 'quant_algo' must be NVFP4; got '{}'", where, settings.where, algorithm);
  }
  return {make_quantization(where + " " + settings.where, "nvfp4", settings.count("group_size", 16), 4), {}};
}

template <int group_size, int bits>
Quantizations as_stored(const Config& options, Arrays&) {
  return {Quantization{group_size, bits, options.text("quant_method")}, {}};
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
    {"mxfp4", as_stored<32, 4>}, // gpt-oss; the model's file knows how its tensors lie
    {"mxfp8", as_stored<32, 8>},
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
