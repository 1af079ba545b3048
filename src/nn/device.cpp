#include "nn/device.h"

#include <mlx/mlx.h>

namespace parallm {

namespace {
thread_local bool forced = false;
}

bool on_cpu() {
  return !forced && mlx::core::default_device() == mlx::core::Device::cpu;
}

void force_mlx_ops(bool force) {
  forced = force;
}

} // namespace parallm
