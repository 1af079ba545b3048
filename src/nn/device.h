// Where this thread's MLX work runs, asked in one place by every op that has a
// CPU kernel of our own.
#pragma once

namespace parallm {

/** The default device is a CPU: kernels/cpu does the work. Else MLX's own ops
 * do. */
bool on_cpu();

/** For tests: MLX's own ops on a CPU too. Set it before weights are loaded. */
void force_mlx_ops(bool force);

} // namespace parallm
