#include "models/checkpoint.h"

#include "base/error.h"
#include "models/quant_formats.h"
#include "models/safetensors.h"

#include <algorithm>
#include <filesystem>
#include <set>

namespace parallm {
namespace fs = std::filesystem;

namespace {

using Arrays = std::unordered_map<std::string, mx::array>;

/** The index's files where there is one, else every model*.safetensors. */
std::vector<fs::path> weight_files(const fs::path& folder) {
  std::set<fs::path> files;
  auto index = folder / "model.safetensors.index.json";
  if (fs::exists(index)) {
    auto map = read_config(index.string()).object("weight_map");
    for (auto& [tensor, file] : map.json) {
      files.insert(folder / map.text(tensor));
    }
  } else {
    for (auto& entry : fs::directory_iterator(folder)) {
      auto name = entry.path().filename().string();
      if (name.starts_with("model") && name.ends_with(".safetensors")) {
        files.insert(entry.path());
      }
    }
  }
  if (files.empty()) {
    fail(Kind::invalid, "[open_checkpoint] no model*.safetensors in {}", folder.string());
  }
  return {files.begin(), files.end()};
}

Arrays read_arrays(const fs::path& folder) {
  Arrays arrays;
  for (auto& file : weight_files(folder)) {
    if (!fs::exists(file)) {
      fail(Kind::invalid, "[open_checkpoint] {} is missing, which the index names", file.string());
    }
    for (auto& [name, array] : read_safetensors(file.string())) {
      if (!arrays.emplace(name, array).second) {
        fail(Kind::invalid, "[open_checkpoint] tensor {} of {} stands in another file too", name, file.string());
      }
    }
  }
  return arrays;
}

/** The float type that most of the weights have; a quantized layer's is its
 * scales'. */
mx::Dtype stored_dtype(const Arrays& arrays) {
  std::map<mx::Dtype::Val, size_t> sizes;
  for (auto& [name, array] : arrays) {
    if (mx::issubdtype(array.dtype(), mx::floating)) {
      sizes[array.dtype().val()] += array.size();
    }
  }
  auto most = std::max_element(sizes.begin(), sizes.end(), [](auto& a, auto& b) { return a.second < b.second; });
  for (auto dtype : {mx::float16, mx::bfloat16}) {
    if (most != sizes.end() && most->first == dtype.val()) {
      return dtype;
    }
  }
  return mx::float32;
}

bool is_quantized(const Config& config) {
  return config.has("quantization") || config.has("quantization_config") ||
      (config.has("text_config") && is_quantized(config.object("text_config")));
}

std::vector<int32_t> sorted(std::vector<int32_t> ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  return ids;
}

GenerationDefaults read_defaults(const Config& config) {
  GenerationDefaults out;
  if (config.has("do_sample")) {
    out.do_sample = config.boolean("do_sample", false);
  }
  if (config.has("temperature")) {
    out.temperature = config.number("temperature");
  }
  if (config.has("top_p")) {
    out.top_p = config.number("top_p");
  }
  if (config.has("top_k")) {
    out.top_k = config.integer("top_k");
  }
  if (config.has("repetition_penalty")) {
    out.repetition_penalty = config.number("repetition_penalty");
  }
  return out;
}

Checkpoint make_checkpoint(
    Config config,
    Arrays arrays,
    Quantizations quantizations,
    mx::Dtype stored,
    const CheckpointOptions& options) {
  bool cpu = mx::default_device() == mx::Device::cpu;
  auto dtype = options.dtype.value_or(cpu ? mx::float32 : stored);
  return {
      .config = std::move(config),
      .weights = Weights(std::move(arrays), std::move(quantizations), dtype),
      .eos_ids = {},
      .bos_id = -1,
      .dtype = dtype,
      .kv_dtype = options.dtype.value_or(stored),
      .stored_dtype = stored,
      .generation = {}};
}

Checkpoint open_gguf(const std::string& path, const CheckpointOptions& options) {
  auto file = read_gguf(path);
  auto out = make_checkpoint(
      std::move(file.config), std::move(file.arrays), std::move(file.quantizations), file.dtype, options);
  out.eos_ids = sorted(std::move(file.eos_ids));
  out.bos_id = file.bos_id;
  return out;
}

Checkpoint open_folder(const fs::path& folder, const CheckpointOptions& options) {
  if (!fs::exists(folder / "config.json")) {
    fail(Kind::invalid, "[open_checkpoint] no config.json in {}", folder.string());
  }
  auto config = read_config((folder / "config.json").string());
  // NVIDIA's Model Optimizer writes a file of its own, and config.json's part since 2025 only.
  if (auto file = folder / "hf_quant_config.json"; fs::exists(file) && !is_quantized(config)) {
    auto settings = read_config(file.string());
    if (settings.has("quantization")) {
      settings.json["quant_method"] = "modelopt";
      config.json["quantization_config"] = std::move(settings.json);
    }
  }
  auto arrays = read_arrays(folder);
  auto quantizations = read_quantizations(config, arrays);
  auto stored = stored_dtype(arrays);
  auto out = make_checkpoint(std::move(config), std::move(arrays), std::move(quantizations), stored, options);

  Config generation;
  if (auto file = folder / "generation_config.json"; fs::exists(file)) {
    generation = read_config(file.string());
  }
  auto& ends = generation.has("eos_token_id") ? generation : out.config;
  out.eos_ids = sorted(ends.integers("eos_token_id"));
  auto& begin = out.config.has("bos_token_id") ? out.config : generation;
  out.bos_id = begin.integer("bos_token_id", -1);
  out.generation = read_defaults(generation);
  return out;
}

} // namespace

Checkpoint open_checkpoint(const std::string& path, const CheckpointOptions& options) {
  if (!fs::exists(path)) {
    fail(Kind::not_found, "[open_checkpoint] no such file or folder: {}", path);
  }
  if (fs::is_directory(path)) {
    return open_folder(path, options);
  }
  if (fs::path(path).extension() != ".gguf") {
    fail(Kind::invalid, "[open_checkpoint] a model is a folder or a .gguf file; got {}", path);
  }
  return open_gguf(path, options);
}

} // namespace parallm
