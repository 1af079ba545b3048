#include "kernels/cuda/kernel.h"

#include "base/hash.h"
#include "kernels/cuda/compile.h"

#include <dlfcn.h>
#include <fmt/format.h>
#include <mlx/backend/cuda/cuda.h>

#include <algorithm>
#include <stdexcept>

namespace parallm::cuda {

namespace {

constexpr const char* types_code = R"cu(
#define INFINITY __int_as_float(0x7f800000)
struct bfloat16 {
  unsigned short bits;
  bfloat16() = default;
  __device__ explicit bfloat16(float x) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ explicit operator float() const { return __uint_as_float((unsigned)bits << 16); }
};
struct float16 {
  unsigned short bits;
  float16() = default;
  __device__ explicit float16(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
  __device__ explicit operator float() const {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
  }
};
)cu";

const char* type_name(mx::Dtype type) {
  switch (type.val()) {
    case mx::Dtype::Val::float32:
      return "float";
    case mx::Dtype::Val::bfloat16:
      return "bfloat16";
    case mx::Dtype::Val::float16:
      return "float16";
    case mx::Dtype::Val::int32:
      return "int";
    case mx::Dtype::Val::uint32:
      return "unsigned";
    case mx::Dtype::Val::uint8:
      return "unsigned char";
    case mx::Dtype::Val::bool_:
      return "bool";
    default:
      throw std::runtime_error("[cuda] no kernel takes arrays of this type");
  }
}

// A prompt's length makes new ones. Each holds the kernel's code.
constexpr size_t most_known = 128;

} // namespace

Kernel::Kernel(
    std::string name,
    std::vector<std::string> inputs,
    std::vector<std::string> outputs,
    const std::string& source,
    const std::string& header,
    int shared_memory,
    int registers)
    : name_(std::move(name)),
      inputs_(std::move(inputs)),
      outputs_(std::move(outputs)),
      source_(source),
      header_(header),
      shared_memory_(shared_memory),
      registers_(registers) {
  for (const auto& input : inputs_) {
    shaped_.push_back(source_.find(input + "_shape") != std::string::npos);
  }
}

std::string Kernel::text(
    const std::string& name,
    const std::vector<mx::array>& inputs,
    const std::vector<mx::Dtype>& types,
    int threads,
    const std::vector<std::pair<std::string, mx::fast::TemplateArg>>& how) const {
  std::string parameters, sizes, shapes;
  const auto separate = [](std::string& list) -> std::string& { return list += list.empty() ? "" : ", "; };
  for (size_t i = 0; i < inputs.size(); ++i) {
    separate(parameters) += fmt::format("const {}* {}", type_name(inputs[i].dtype()), inputs_[i]);
    if (!shaped_[i]) {
      continue;
    }
    std::string names;
    for (size_t d = 0; d < inputs[i].ndim(); ++d) {
      separate(names) += fmt::format("{}_size{}", inputs_[i], d);
      sizes += fmt::format(", int {}_size{}", inputs_[i], d);
    }
    shapes += fmt::format("const int {}_shape[] = {{{}}};\n", inputs_[i], names);
  }
  for (size_t i = 0; i < types.size(); ++i) {
    separate(parameters) += fmt::format("{}* {}", type_name(types[i]), outputs_[i]);
  }
  std::string given;
  for (const auto& [key, value] : how) {
    if (auto* number = std::get_if<int>(&value)) {
      given += fmt::format("constexpr int {} = {};\n", key, *number);
    } else if (auto* yes = std::get_if<bool>(&value)) {
      given += fmt::format("constexpr bool {} = {};\n", key, *yes);
    } else {
      given += fmt::format("using {} = {};\n", key, type_name(std::get<mx::Dtype>(value)));
    }
  }
  return fmt::format(
      "{}{}\nextern \"C\" __global__ void __launch_bounds__({}, {}) {}({}{}) {{\n{}{}{}\n}}\n",
      types_code,
      header_,
      threads,
      std::max(1, (1 << 16) / (registers_ * threads)),
      name,
      parameters,
      sizes,
      given,
      shapes,
      source_);
}

std::vector<mx::array> Kernel::operator()(
    const std::vector<mx::array>& inputs,
    const std::vector<mx::Shape>& shapes,
    const std::vector<mx::Dtype>& types,
    std::tuple<int, int, int> threads,
    std::tuple<int, int, int> block,
    const std::vector<std::pair<std::string, mx::fast::TemplateArg>>& how) const {
  // All that the code is made of, then all that a primitive is.
  std::vector<int> key{std::get<0>(block)};
  for (const auto& input : inputs) {
    key.push_back(int(input.dtype().val()));
  }
  for (const auto& type : types) {
    key.push_back(int(type.val()));
  }
  for (const auto& [name, value] : how) {
    if (auto* number = std::get_if<int>(&value)) {
      key.push_back(*number);
    } else if (auto* yes = std::get_if<bool>(&value)) {
      key.push_back(*yes);
    } else {
      key.push_back(int(std::get<mx::Dtype>(value).val()));
    }
  }
  const size_t of_code = key.size();
  key.insert(
      key.end(),
      {mx::default_stream(mx::default_device()).index,
       std::get<0>(threads),
       std::get<1>(threads),
       std::get<2>(threads)});
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (shaped_[i]) {
      key.insert(key.end(), inputs[i].shape().begin(), inputs[i].shape().end());
    }
  }
  if (auto found = known_.find(key); found != known_.end()) {
    return mx::array::make_arrays(shapes, types, found->second, inputs);
  }
  const std::vector<int> code_key(key.begin(), key.begin() + of_code);
  auto code = compiled_.find(code_key);
  if (code == compiled_.end()) {
    const int count = std::get<0>(block);
    // MLX knows a kernel by its name alone.
    const auto name = name_ + "_" + sha256(text(name_, inputs, types, count, how)).substr(0, 16);
    const int at = compute_capability();
    auto made = compiled(text(name, inputs, types, count, how), at / 10, at % 10);
    code = compiled_.emplace(code_key, std::pair(name, std::move(made))).first;
  }
  std::vector<mx::fast::ScalarArg> sizes;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (shaped_[i]) {
      sizes.insert(sizes.end(), inputs[i].shape().begin(), inputs[i].shape().end());
    }
  }
  auto outputs = mx::fast::precompiled_cuda_kernel(
      code->second.first, code->second.second, inputs, shapes, types, sizes, threads, block, shared_memory_, {}, true);
  if (known_.size() >= most_known) {
    known_.clear();
  }
  known_.emplace(std::move(key), outputs[0].primitive_ptr());
  return outputs;
}

int compute_capability() {
  static const int found = [] {
    if (!mx::cu::is_available()) {
      return 0;
    }
    auto& info = mx::device_info(mx::Device::gpu);
    auto major = info.find("compute_capability_major"), minor = info.find("compute_capability_minor");
    return major == info.end() || minor == info.end()
        ? 0
        : int(10 * std::get<size_t>(major->second) + std::get<size_t>(minor->second));
  }();
  return found;
}

int multiprocessors() {
  static const int found = [] { // cuDeviceGetAttribute of CUDA's driver
    using Attribute = int (*)(int* value, int attribute, int device);
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY);
    auto attribute = reinterpret_cast<Attribute>(driver ? dlsym(driver, "cuDeviceGetAttribute") : nullptr);
    constexpr int multiprocessor_count = 16;
    int count = 0;
    return attribute && attribute(&count, multiprocessor_count, 0) == 0 && count > 0 ? count : 100;
  }();
  return found;
}

} // namespace parallm::cuda
