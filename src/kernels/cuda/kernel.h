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

/** As mx::fast::cuda_kernel, of the body's text, for row-contiguous arrays; compiled by compile.h, and at less cost for
 * the host, which else takes longer than a small kernel runs: a call like an earlier one takes over its primitive. The
 * text finds inputs and outputs under their names (const T* and T*), an input's sizes, where it names them, as
 * `name_shape[i]`, and `how`'s entries: numbers, and types. 16-bit floats are bfloat16 and float16, which turn into
 * float and are made of it (rounded to the nearest even). For the one thread that has it (thread_local). */
class Kernel {
 public:
  Kernel(
      std::string name,
      std::vector<std::string> inputs,
      std::vector<std::string> outputs,
      const std::string& source,
      const std::string& header = "",
      int shared_memory = 0, // bytes that a block has beside what the text declares
      int registers = 255); // of a thread, at most: of 65,536, which say how many blocks a multiprocessor holds

  std::vector<mx::array> operator()(
      const std::vector<mx::array>& inputs,
      const std::vector<mx::Shape>& shapes,
      const std::vector<mx::Dtype>& types,
      std::tuple<int, int, int> threads, // of the whole grid
      std::tuple<int, int, int> block,
      const std::vector<std::pair<std::string, mx::fast::TemplateArg>>& how) const;

 private:
  std::string text(
      const std::string& name,
      const std::vector<mx::array>& inputs,
      const std::vector<mx::Dtype>& types,
      int threads,
      const std::vector<std::pair<std::string, mx::fast::TemplateArg>>& how) const;

  std::string name_;
  std::vector<std::string> inputs_, outputs_;
  std::vector<bool> shaped_; // inputs whose sizes the text names
  std::string source_, header_;
  int shared_memory_, registers_;
  mutable std::map<std::vector<int>, std::pair<std::string, std::string>> compiled_; // names and code
  mutable std::map<std::vector<int>, std::shared_ptr<mx::Primitive>> known_;
};

/** Of the GPU, times ten: 90 is 9.0. 0 where there is none. */
int compute_capability();
/** Its streaming multiprocessors. */
int multiprocessors();

} // namespace parallm::cuda
