// How a kernel's text becomes an op of MLX.
#pragma once

#include <mlx/mlx.h>

#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace parallm::cuda {
namespace mx = mlx::core;

/** mx::fast::cuda_kernel for row-contiguous arrays, at less cost for the host, which else takes longer than a small
 * kernel runs: MLX puts a kernel's text together for each call and hashes it for each launch. So the text that it sees
 * is an #include of a file, which lives as long as the process, and a call like an earlier one takes over its
 * primitive. Engine thread only. */
class Kernel {
 public:
  Kernel(
      const std::string& name,
      const std::vector<std::string>& inputs,
      const std::vector<std::string>& outputs,
      const std::string& source,
      const std::string& header = "",
      int shared_memory = 0);

  std::vector<mx::array> operator()(
      const std::vector<mx::array>& inputs,
      const std::vector<mx::Shape>& shapes,
      const std::vector<mx::Dtype>& types,
      std::tuple<int, int, int> threads, // of the whole grid
      std::tuple<int, int, int> block,
      const std::vector<std::pair<std::string, mx::fast::TemplateArg>>& how) const;

 private:
  mx::fast::CustomKernelFunction function_;
  mutable std::map<std::vector<int>, std::shared_ptr<mx::Primitive>> known_;
};

} // namespace parallm::cuda
