// How a kernel's text becomes an op of MLX.
#pragma once

#include <mlx/mlx.h>

#include <string>
#include <vector>

namespace parallm::cuda {
namespace mx = mlx::core;

/** mx::fast::cuda_kernel for row-contiguous arrays. MLX copies a kernel's text for each node and hashes it for each
 * launch, which takes the host longer than a small kernel runs; so the text that it sees is an #include of a file,
 * which lives as long as the process. */
mx::fast::CustomKernelFunction make_kernel(
    const std::string& name,
    const std::vector<std::string>& inputs,
    const std::vector<std::string>& outputs,
    const std::string& source,
    const std::string& header = "",
    int shared_memory = 0);

} // namespace parallm::cuda
