// Where this thread's MLX work runs, asked in one place by every op that has a
// CPU kernel of our own.
#pragma once

namespace parallm {

/** False until kernels/cpu has all of ops.h. */
inline constexpr bool cpu_kernels = false;

/** The default device is a CPU and nobody forces MLX's ops. */
bool wants_cpu_kernels();

/** kernels/cpu does the work. Else MLX's own ops do. */
inline bool on_cpu() {
  return cpu_kernels && wants_cpu_kernels();
}

/** For tests: MLX's own ops on a CPU too. Set it before weights are loaded. */
void force_mlx_ops(bool force);

} // namespace parallm
