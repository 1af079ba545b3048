#include "nn/device.h"

#include "kernels/cuda/ops.h"

#include <mlx/backend/cuda/cuda.h>
#include <mlx/mlx.h>

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

bool cuda_kernels() {
  return !forced && on_cuda() && cuda::available();
}

void force_mlx_ops(bool force) {
  forced = force;
}

} // namespace parallm
