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

} // namespace

mx::fast::CustomKernelFunction make_kernel(
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

} // namespace parallm::cuda
