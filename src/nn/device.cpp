#include "nn/device.h"

#include "kernels/cuda/ops.h"

#include <mlx/backend/cuda/cuda.h>
#include <mlx/mlx.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace parallm {

namespace {
thread_local bool forced = false;
}

bool on_cpu() {
  return !forced && mlx::core::default_device() == mlx::core::Device::cpu;
}

bool on_cuda() {
  static const bool found = mlx::core::cu::is_available();
  return found && mlx::core::default_device() == mlx::core::Device::gpu;
}

void prepare_device() {
  if (!on_cuda()) {
    return;
  }
  setenv("MLX_MAX_OPS_PER_BUFFER", "2000", 0);
  // What a graph's kernels read counts, in millions of elements; until it has run, it holds all its intermediate
  // results: of 16 bits, a 32nd of the memory at most.
  auto& info = mlx::core::device_info(mlx::core::Device::gpu);
  if (auto total = info.find("total_memory"); total != info.end()) {
    auto millions = std::max<size_t>(1000, (std::get<size_t>(total->second) >> 20) / 64);
    setenv("MLX_MAX_MB_PER_BUFFER", std::to_string(millions).c_str(), 0);
  }
}

bool cuda_kernels() {
  return !forced && on_cuda() && cuda::available();
}

void force_mlx_ops(bool force) {
  forced = force;
}

} // namespace parallm
