#include "models/convert.h"

#include "base/error.h"
#include "base/json.h"
#include "models/model.h"
#include "models/quant_recipe.h"
#include "nn/linear.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <set>

namespace parallm {

namespace {

/** Whether it is more than the layer's bias. */
bool is_packed(const std::string& part) {
  return part == "weight" || part == "scales" || part == "biases" || part == "global_scale";
}

std::optional<mx::Dtype> dtype_of(const Config& config) {
  const auto nested = config.has("text_config") ? config.object("text_config") : Config{};
  const auto name = config.has("torch_dtype") ? config.text("torch_dtype") : nested.text("dtype", "");
  static const std::map<std::string, mx::Dtype> known = {
      {"float16", mx::float16}, {"bfloat16", mx::bfloat16}, {"float32", mx::float32}};
  const auto found = known.find(name);
  return found == known.end() ? std::nullopt : std::optional(found->second);
}

/** What the architecture's own rules are found by: model_type but for Ling 3, which shares it with Ling 2.5. */
std::string rules_of(const Config& config) {
  const auto names = config.has("architectures") ? config.texts("architectures") : std::vector<std::string>{};
  const bool third = std::find(names.begin(), names.end(), "BailingMoeV3ForCausalLM") != names.end();
  return third ? "bailing_moe_v3" : config.text("model_type");
}

/** A layer's codes of 2 bits as BitNet's layers in mlx-lm hold them: uint8 [outputs/4, inputs], in bits 2i and 2i+1 row
 * i * outputs/4 + r. */
mx::array pack_ternary(const mx::array& codes, int inputs) {
  const auto ones = mx::ones({codes.shape(0), inputs / 32}), none = mx::zeros(ones.shape());
  const auto numbers = mx::astype(mx::dequantize(codes, ones, none, 32, 2), mx::uint8);
  const auto quarters = mx::reshape(numbers, {4, -1, inputs});
  const auto shifts = mx::reshape(mx::array({0, 2, 4, 6}, mx::uint8), {4, 1, 1});
  return mx::astype(mx::sum(mx::left_shift(quarters, shifts), 0), mx::uint8);
}

/** Turns what a model took into what is written. */
class Converter {
 public:
  Converter(const Recording& taken, const Conversion& how, const Config& config, mx::Dtype stored)
      : taken_(taken),
        how_(how),
        dtype_(how.dtype ? how.dtype : dtype_of(config)),
        stored_(stored),
        model_type_(rules_of(config)) {
    for (const auto& tensor : taken.tensors) {
      arrays_.emplace(tensor.name, tensor.array);
    }
    if (how.quantize) {
      std::vector<std::string> names;
      for (const auto& [layer, kind] : taken.layers) {
        names.push_back(layer);
      }
      rules_.emplace(*how.quantize, how.recipe, model_type_, names);
    }
  }

  void run() {
    for (const auto& [name, array] : taken_.tensors) {
      const auto dot = name.rfind('.');
      const auto layer = name.substr(0, dot), part = dot == std::string::npos ? "" : name.substr(dot + 1);
      const auto found = taken_.layers.find(layer);
      if (found == taken_.layers.end() || !is_packed(part)) {
        add(name, cast(name, array));
        parameters += array.size();
      } else if (part == "weight") {
        add_layer(layer, found->second);
      }
    }
  }

  std::vector<NamedArray> tensors;
  std::map<std::string, Quantization> quantized;
  std::set<std::string> scaled; // of them: those with a global scale
  size_t parameters = 0;
  size_t widened = 0;

 private:
  void add(std::string name, mx::array array) {
    tensors.push_back({std::move(name), std::move(array)});
  }

  mx::array cast(const std::string& name, const mx::array& array) const {
    const bool wanted = dtype_ && mx::issubdtype(array.dtype(), mx::floating) && may_cast(model_type_, name);
    return wanted ? mx::astype(array, *dtype_) : array;
  }

  std::optional<mx::array> part(const std::string& layer, const char* end) const {
    const auto found = arrays_.find(layer + end);
    return found == arrays_.end() ? std::nullopt : std::optional(cast(found->first, found->second));
  }

  void add_codes(
      const std::string& layer,
      const Quantization& kind,
      const mx::array& codes,
      const mx::array& scales,
      const std::optional<mx::array>& biases,
      const std::optional<mx::array>& global_scale = {}) {
    add(layer + ".weight", codes);
    add(layer + ".scales", scales);
    if (biases) {
      add(layer + ".biases", *biases);
    }
    if (global_scale) {
      add(layer + ".global_scale", *global_scale);
      scaled.insert(layer);
    }
    quantized.emplace(layer, kind);
    parameters += codes.size() * 32 / kind.bits;
  }

  mx::array widen(const std::string& layer, const Quantization& kind, const mx::array& codes) const {
    const auto biases = part(layer, ".biases");
    const auto type = dtype_.value_or(biases ? biases->dtype() : mx::bfloat16);
    return dequantize(codes, *part(layer, ".scales"), biases, kind, type);
  }

  /** The factors are float32, and only the weight is rounded. */
  mx::array widen_wholly(const std::string& layer, const Quantization& kind, const mx::array& codes) const {
    const auto at = [&](const char* end) {
      const auto found = arrays_.find(layer + end);
      return found == arrays_.end() ? std::nullopt : std::optional(found->second);
    };
    std::optional<mx::array> factor;
    if (const auto global = at(".global_scale")) {
      factor = mx::expand_dims(
          mx::divide(*global, mx::array(global_scale_unit)),
          global->ndim() > 0 ? std::vector<int>{1, 2} : std::vector<int>{});
    }
    const auto weight = dequantize(codes, *at(".scales"), at(".biases"), kind, mx::float32, factor);
    return mx::astype(weight, dtype_.value_or(stored_));
  }

  /** What MLX's own quantized layers can be: groups of 32 and more, and a global scale of experts only. */
  bool in_mlx(const std::string& layer, const Quantization& kind) const {
    const auto global = arrays_.find(layer + ".global_scale");
    return (kind.mode != "affine" || kind.group_size >= 32) && (global == arrays_.end() || global->second.ndim() > 0);
  }

  /** Its layers are ternary in mlx-lm too, where a factor multiplies all of a layer's weights. */
  void add_ternary(const std::string& layer, const mx::array& codes) {
    const auto scales = *part(layer, ".scales");
    add(layer + ".weight", pack_ternary(codes, codes.shape(1) * 16));
    add(layer + ".weight_scale", mx::reshape(mx::slice(scales, {0, 0}, {1, 1}), {1}));
    parameters += codes.size() * 4 + 1;
  }

  void add_layer(const std::string& layer, std::optional<Quantization> kind) {
    auto weight = *part(layer, ".weight");
    if (model_type_ == "bitnet" && layer.ends_with("_proj")) {
      if (!kind) {
        fail(Kind::invalid, "[convert] BitNet's {} must be ternary", layer);
      }
      return add_ternary(layer, weight);
    }
    const auto global = arrays_.find(layer + ".global_scale");
    if (kind && !how_.dequantize && in_mlx(layer, *kind)) {
      const auto scale = global == arrays_.end() ? std::nullopt : std::optional(global->second);
      return add_codes(layer, *kind, weight, *part(layer, ".scales"), part(layer, ".biases"), scale);
    }
    if (kind) {
      widened += in_mlx(layer, *kind) ? 0 : 1;
      const bool whole = !in_mlx(layer, *kind) || global != arrays_.end();
      weight = whole ? widen_wholly(layer, *kind, weight) : widen(layer, *kind, weight);
    }
    if (const auto wanted = rules_ ? (*rules_)(layer, weight.shape(-1)) : std::nullopt) {
      const auto codes = mx::quantize(weight, wanted->group_size, wanted->bits, wanted->mode);
      return add_codes(layer, *wanted, codes[0], codes[1], codes.size() > 2 ? std::optional(codes[2]) : std::nullopt);
    }
    parameters += weight.size();
    add(layer + ".weight", weight);
  }

  const Recording& taken_;
  const Conversion& how_;
  std::optional<mx::Dtype> dtype_;
  mx::Dtype stored_;
  std::string model_type_;
  std::map<std::string, mx::array> arrays_;
  std::optional<QuantRules> rules_;
};

boost::json::object json_of(const Quantization& kind) {
  return {{"group_size", kind.group_size}, {"bits", kind.bits}, {"mode", kind.mode}};
}

/** The usual kind, and each layer that differs from it. */
boost::json::object json_of(
    const std::map<std::string, Quantization>& layers,
    const std::set<std::string>& scaled,
    const std::optional<Quantization>& usual) {
  std::map<std::string, std::pair<size_t, const Quantization*>> counts;
  for (const auto& [layer, kind] : layers) {
    auto& count = counts[json_text(json_of(kind))];
    count = {count.first + 1, &kind};
  }
  const auto most =
      std::max_element(counts.begin(), counts.end(), [](auto& a, auto& b) { return a.second.first < b.second.first; });
  const Quantization base = usual.value_or(*most->second.second);
  auto out = json_of(base);
  for (const auto& [layer, kind] : layers) {
    if (kind != base) {
      out[layer] = json_of(kind);
      if (scaled.contains(layer)) {
        out[layer].as_object()["global_scale"] = true; // mlx-lm asks for it where config.json says anything of a layer
      }
    }
  }
  return out;
}

bool are_llama3(
    const std::vector<double>& factors,
    double factor,
    double base,
    double low,
    double high,
    double length) {
  for (size_t i = 0; i < factors.size(); ++i) {
    const double wave = 2 * M_PI * std::pow(base, double(i) / factors.size());
    const double keep = std::clamp((length / wave - low) / (high - low), 0.0, 1.0);
    if (std::abs(factors[i] * ((1 - keep) / factor + keep) - 1) > 1e-4) {
      return false;
    }
  }
  return true;
}

/** A GGUF file has a factor for each frequency, which only our own config names. Where they are those of "llama3" with
 * Meta's settings, that is what is written, else "longrope", which has such factors too: from an original length that
 * is the model's, they alone count. */
void name_scaling(boost::json::object& json) {
  const Config config{json};
  if (!config.has("rope_scaling") || config.object("rope_scaling").text("rope_type", "") != "frequency_factors") {
    return;
  }
  const auto factors = config.object("rope_scaling").numbers("factors");
  const double low = 1, high = 4, original = 8192;
  const double factor = factors.empty() ? 1 : *std::max_element(factors.begin(), factors.end());
  if (are_llama3(factors, factor, config.number("rope_theta", 10000), low, high, original)) {
    json["rope_scaling"] = {
        {"rope_type", "llama3"},
        {"factor", factor},
        {"low_freq_factor", low},
        {"high_freq_factor", high},
        {"original_max_position_embeddings", static_cast<int>(original)}};
    return;
  }
  const boost::json::array list(factors.begin(), factors.end());
  json["rope_scaling"] = {
      {"rope_type", "longrope"},
      {"long_factor", list},
      {"short_factor", list},
      {"original_max_position_embeddings", config.count("max_position_embeddings")}};
}

/** JSON has no infinity: written as transformers 5 does. */
void spell_infinities(boost::json::value& value) {
  if (auto* object = value.if_object()) {
    for (auto& member : *object) {
      spell_infinities(member.value());
    }
  } else if (auto* array = value.if_array()) {
    for (auto& item : *array) {
      spell_infinities(item);
    }
  } else if (auto* number = value.if_double(); number && std::isinf(*number)) {
    value = {{"__float__", *number > 0 ? "Infinity" : "-Infinity"}};
  }
}

boost::json::object config_of(
    const Checkpoint& checkpoint,
    const Conversion& how,
    const std::map<std::string, Quantization>& quantized,
    const std::set<std::string>& scaled) {
  auto config = checkpoint.config.json;
  for (auto gone : {"_name_or_path", "vision_config", "quantization", "quantization_config"}) {
    config.erase(gone);
  }
  if (auto* text = config.if_contains("text_config"); text && text->is_object()) {
    text->get_object().erase("quantization_config");
  }
  name_scaling(config);
  if (!quantized.empty()) {
    boost::json::value kinds = json_of(quantized, scaled, how.quantize);
    config["quantization"] = kinds;
    config["quantization_config"] = std::move(kinds); // where the hub's pages look for it
  }
  if (how.dtype && config.contains("torch_dtype")) {
    config["torch_dtype"] = *how.dtype == mx::float32 ? "float32" : *how.dtype == mx::float16 ? "float16" : "bfloat16";
  }
  if (checkpoint.eos_ids.size() == 1) {
    config["eos_token_id"] = checkpoint.eos_ids[0];
  } else if (!checkpoint.eos_ids.empty()) {
    config["eos_token_id"] = boost::json::array(checkpoint.eos_ids.begin(), checkpoint.eos_ids.end());
  }
  if (checkpoint.bos_id >= 0 && !config.contains("bos_token_id")) {
    config["bos_token_id"] = checkpoint.bos_id;
  }
  for (auto& member : config) {
    spell_infinities(member.value());
  }
  return config;
}

boost::json::object sorted(const boost::json::object& object) {
  std::map<std::string_view, const boost::json::value*> members;
  for (const auto& [key, value] : object) {
    members.emplace(key, &value);
  }
  boost::json::object out;
  for (const auto& [key, value] : members) {
    out[key] = *value;
  }
  return out;
}

void write_json(const std::string& path, const boost::json::object& value) {
  std::ofstream out(path, std::ios::binary);
  out << pretty_json(value) << '\n';
  out.close();
  if (!out) {
    fail(Kind::invalid, "[convert] can't write {}", path);
  }
}

std::string written_name(const Config& config, std::string name) {
  const auto type = config.text("model_type");
  if (type == "llama4_text" && name.starts_with("lm_head.")) {
    name.replace(0, 7, "output");
  }
  // In multimodal wrappers the text part's layers lie under language_model; make_model takes that away.
  const bool wrapped = type != "muse_glimmer" && type != "muse_spark" &&
      (config.has("text_config") || type == "kimi_k3" || type == "qwen2_vl" || type == "qwen2_5_vl");
  return wrapped && !name.starts_with("model.language_model.") ? "language_model." + name : name;
}

void rename(Recording& taken, const Config& config) {
  for (auto& tensor : taken.tensors) {
    tensor.name = written_name(config, tensor.name);
  }
  std::map<std::string, std::optional<Quantization>> layers;
  for (auto& [layer, kind] : taken.layers) {
    auto name = written_name(config, layer + ".");
    name.pop_back();
    layers.emplace(std::move(name), kind);
  }
  taken.layers = std::move(layers);
}

} // namespace

ConvertedModel convert_model(Checkpoint checkpoint, const Conversion& how) {
  Recording taken;
  checkpoint.weights.record(taken);
  make_model(checkpoint.config, checkpoint.weights); // the model itself isn't needed
  rename(taken, checkpoint.config);
  ConvertedModel out;
  {
    Converter converter(taken, how, checkpoint.config, checkpoint.stored_dtype);
    converter.run();
    out.config = config_of(checkpoint, how, converter.quantized, converter.scaled);
    out.tensors = std::move(converter.tensors);
    out.parameters = converter.parameters;
    out.widened = converter.widened;
  }
  for (const auto& tensor : out.tensors) {
    out.bytes += tensor.array->nbytes();
  }
  return out;
}

void write_model(
    const std::string& folder,
    ConvertedModel model,
    const std::function<void(size_t)>& written,
    size_t shard_bytes) {
  std::vector<std::vector<NamedArray>> shards;
  size_t size = 0;
  for (auto& tensor : model.tensors) {
    const size_t bytes = tensor.array->nbytes();
    if (shards.empty() || size + bytes > shard_bytes) {
      shards.emplace_back();
      size = 0;
    }
    size += bytes;
    shards.back().push_back(std::move(tensor));
  }
  boost::json::object files;
  for (size_t i = 0; i < shards.size(); ++i) {
    const auto file = shards.size() == 1 ? "model.safetensors"
                                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const auto& tensor : shards[i]) {
      files[tensor.name] = file;
    }
    write_safetensors(fmt::format("{}/{}", folder, file), std::move(shards[i]), written);
  }
  boost::json::object index;
  index["metadata"] = {{"total_size", model.bytes}, {"total_parameters", model.parameters}};
  index["weight_map"] = sorted(files);
  write_json(folder + "/model.safetensors.index.json", index);
  write_json(folder + "/config.json", sorted(model.config));
}

} // namespace parallm
