#include "nn/weights.h"

#include "base/error.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace parallm {

namespace {

constexpr const char* layer_parts[] = {".weight", ".scales", ".biases", ".global_scale", ".bias"};

/** Old HF checkpoints carry RoPE's tables; they follow from config.json
 * (mlx-lm's sanitize drops them too). */
bool is_rope_table(const std::string& name) {
  return name.find("rotary_emb.") != std::string::npos;
}

void append(std::string& text, const char* title, std::vector<std::string>& names) {
  if (names.empty()) {
    return;
  }
  std::sort(names.begin(), names.end());
  text += fmt::format("{}{} {}: {}", text.empty() ? "" : "; ", names.size(), title, fmt::join(names, ", "));
}

} // namespace

Weights::Weights(std::unordered_map<std::string, mx::array> arrays, Quantizations quantizations, mx::Dtype dtype)
    : arrays_(std::move(arrays)), quantizations_(std::move(quantizations)), dtype_(dtype) {}

bool Weights::has(const std::string& name) const {
  return arrays_.contains(name);
}

std::optional<Quantization> Weights::stored_quantization(const std::string& layer, int inputs) const {
  auto scales = arrays_.find(layer + ".scales");
  if (scales == arrays_.end()) {
    return {};
  }
  if (auto found = quantizations_.layers.find(layer); found != quantizations_.layers.end()) {
    return found->second;
  }
  auto codes = arrays_.find(layer + ".weight");
  if (!quantizations_.all || codes == arrays_.end() || codes->second.ndim() == 0 || scales->second.ndim() == 0) {
    return quantizations_.all;
  }
  bool byte_scales = scales->second.dtype() == mx::uint8;
  auto told = infer_quantization(codes->second.shape(-1), scales->second.shape(-1), inputs, byte_scales);
  return told ? told : quantizations_.all; // what then doesn't fit, `take` says
}

std::optional<Quantization> Weights::quantization(const std::string& layer, int inputs) {
  auto how = stored_quantization(layer, inputs);
  if (records(layer)) {
    recording_->layers.insert_or_assign(layer, how);
  }
  return how;
}

mx::array Weights::take(const std::string& name, mx::Shape shape, std::optional<mx::Dtype> as) {
  auto found = arrays_.find(name);
  if (found == arrays_.end()) {
    missing_.push_back(name);
    return mx::zeros(shape, as.value_or(dtype_));
  }
  auto array = std::move(found->second);
  arrays_.erase(found);
  if (array.shape() != shape) {
    misshaped_.push_back(
        fmt::format("{} wants [{}], got [{}]", name, fmt::join(shape, ", "), fmt::join(array.shape(), ", ")));
    return mx::zeros(shape, as.value_or(dtype_));
  }
  if (records(name.substr(0, name.rfind('.')))) {
    recording_->tensors.push_back({name, array});
  }
  if (as) {
    array = mx::astype(array, *as);
  }
  taken_.push_back(array);
  return array;
}

void Weights::ignore(std::string prefix) {
  ignored_.push_back(std::move(prefix));
}

void Weights::rotate(const std::string& layer, int block) {
  rotation_blocks_[layer] = block;
}

int Weights::rotation_block(const std::string& layer) const {
  auto found = rotation_blocks_.find(layer);
  return found == rotation_blocks_.end() ? 0 : found->second;
}

void Weights::record(Recording& to) {
  recording_ = &to;
}

void Weights::record_whole(const std::string& layer, int inputs, const std::vector<std::string>& parts) {
  if (!recording_ || !has(layer + ".weight")) {
    return;
  }
  recording_->layers.insert_or_assign(layer, stored_quantization(layer, inputs));
  for (auto* part : layer_parts) {
    if (auto found = arrays_.find(layer + part); found != arrays_.end()) {
      recording_->tensors.push_back({found->first, found->second});
    }
  }
  recorded_.insert(parts.begin(), parts.end());
}

bool Weights::records(const std::string& layer) const {
  return recording_ && !recorded_.contains(layer);
}

void Weights::rename(const std::string& from, const std::string& to) {
  std::vector<std::string> names;
  for (auto& [name, array] : arrays_) {
    if (name.starts_with(from)) {
      names.push_back(name);
    }
  }
  for (auto& name : names) {
    put(to + name.substr(from.size()), *pull(name));
  }
  std::map<std::string, std::optional<Quantization>> layers;
  for (auto& [layer, kind] : quantizations_.layers) {
    layers.emplace(layer.starts_with(from) ? to + layer.substr(from.size()) : layer, kind);
  }
  quantizations_.layers = std::move(layers);
}

void Weights::stack(const std::string& pattern, int count, const std::string& to) {
  const auto layer = [&](int i) { return fmt::format(fmt::runtime(pattern), i); };
  for (auto* part : layer_parts) {
    if (!has(layer(0) + part)) {
      continue;
    }
    std::vector<mx::array> all;
    for (int i = 0; i < count; ++i) {
      auto array = pull(layer(i) + part);
      if (!array || (i > 0 && array->shape() != all[0].shape())) {
        fail(Kind::invalid, "[weights] {}{} is missing or unlike {}{}", layer(i), part, layer(0), part);
      }
      all.push_back(*array);
    }
    put(to + part, mx::stack(all));
  }
  if (auto kind = quantizations_.layers.find(layer(0)); kind != quantizations_.layers.end()) {
    quantizations_.layers.insert_or_assign(to, kind->second);
  }
}

std::optional<mx::array> Weights::pull(const std::string& name) {
  auto found = arrays_.find(name);
  if (found == arrays_.end()) {
    return {};
  }
  auto array = std::move(found->second);
  arrays_.erase(found);
  return array;
}

void Weights::put(const std::string& name, mx::array array) {
  if (!arrays_.emplace(name, std::move(array)).second) {
    doubled_.push_back(name);
  }
}

void Weights::put_quantized(const std::string& layer, const mx::array& weight, const Quantization& how) {
  // On the CPU, whatever computes: CUDA's codes differ in places.
  auto parts = mx::quantize(weight, how.group_size, how.bits, how.mode, {}, mx::Device::cpu);
  for (size_t i = 0; i < parts.size(); ++i) { // weight, scales, biases
    put(layer + layer_parts[i], parts[i]);
  }
  quantizations_.layers.insert_or_assign(layer, how);
}

std::vector<std::string> Weights::names_ending(std::string_view suffix) const {
  std::vector<std::string> names;
  for (auto& [name, array] : arrays_) {
    if (name.ends_with(suffix)) {
      names.push_back(name);
    }
  }
  std::sort(names.begin(), names.end());
  return names;
}

void Weights::finish() {
  std::vector<std::string> extra;
  for (auto& [name, array] : arrays_) {
    bool known = std::any_of(ignored_.begin(), ignored_.end(), [&](auto& prefix) { return name.starts_with(prefix); });
    if (!known && !is_rope_table(name)) {
      extra.push_back(name);
    }
  }
  std::string text;
  append(text, "missing", missing_);
  append(text, "that stand there twice", doubled_);
  append(text, "of a wrong shape", misshaped_);
  append(text, "that the model doesn't know", extra);
  if (!text.empty()) {
    fail(Kind::invalid, "[weights] tensors don't fit config.json: {}", text);
  }
  arrays_.clear();
  for (auto& array : taken_) {
    if (!recording_) {
      mx::eval(array);
    }
  }
  taken_.clear();
}

} // namespace parallm
