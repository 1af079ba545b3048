#include "kernels/cuda/kernel.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace parallm::cuda {

namespace {

/** A folder of this process's own. */
class TextFolder {
 public:
  TextFolder() {
    std::error_code error;
    auto wanted = (std::filesystem::temp_directory_path(error) / "mlx_parallm-XXXXXX").string();
    if (!error && mkdtemp(wanted.data())) {
      path_ = wanted;
    }
  }
  ~TextFolder() {
    std::error_code error;
    if (!path_.empty()) {
      std::filesystem::remove_all(path_, error);
    }
  }
  TextFolder(const TextFolder&) = delete;
  TextFolder& operator=(const TextFolder&) = delete;

  /** A line that stands for the text; the text itself where it can't be written. */
  std::string included(const std::string& text) {
    auto file = path_ / fmt::format("{}.cuh", count_++);
    if (text.empty() || path_.empty() || !(std::ofstream(file) << text << std::flush)) {
      return text;
    }
    return fmt::format("#include \"{}\"\n", file.string());
  }

 private:
  std::filesystem::path path_;
  int count_ = 0;
};

mx::fast::CustomKernelFunction make_function(
    const std::string& name,
    const std::vector<std::string>& inputs,
    const std::vector<std::string>& outputs,
    const std::string& source,
    const std::string& header,
    int shared_memory) {
  static TextFolder folder;
  std::string uses; // MLX passes the shapes that it finds in the text
  for (const auto& input : inputs) {
    if (source.find(input + "_shape") != std::string::npos) {
      uses += fmt::format("// {}_shape\n", input);
    }
  }
  return mx::fast::cuda_kernel(
      name, inputs, outputs, uses + folder.included(source), folder.included(header), true, shared_memory);
}

constexpr size_t most_known = 1024; // a prompt's length makes new ones

} // namespace

Kernel::Kernel(
    const std::string& name,
    const std::vector<std::string>& inputs,
    const std::vector<std::string>& outputs,
    const std::string& source,
    const std::string& header,
    int shared_memory)
    : function_(make_function(name, inputs, outputs, source, header, shared_memory)) {}

std::vector<mx::array> Kernel::operator()(
    const std::vector<mx::array>& inputs,
    const std::vector<mx::Shape>& shapes,
    const std::vector<mx::Dtype>& types,
    std::tuple<int, int, int> threads,
    std::tuple<int, int, int> block,
    const std::vector<std::pair<std::string, mx::fast::TemplateArg>>& how) const {
  // All that a primitive is made of.
  std::vector<int> key{
      mx::default_stream(mx::default_device()).index,
      std::get<0>(threads),
      std::get<1>(threads),
      std::get<2>(threads),
      std::get<0>(block)};
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
  if (auto found = known_.find(key); found != known_.end()) {
    return mx::array::make_arrays(shapes, types, found->second, inputs);
  }
  auto outputs = function_(inputs, shapes, types, threads, block, how, {}, false, {});
  if (known_.size() >= most_known) {
    known_.clear();
  }
  known_.emplace(std::move(key), outputs[0].primitive_ptr());
  return outputs;
}

} // namespace parallm::cuda
