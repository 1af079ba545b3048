// Where this thread's MLX work runs, asked in one place by every op that has a
// CPU kernel of our own.
#pragma once

namespace parallm {

/** The default device is a CPU: kernels/cpu does the work. Else MLX's own ops
 * do. */
bool on_cpu();

/** The default device is an NVIDIA GPU: a few of MLX's ops are wrong there. */
bool on_cuda();
/** And kernels/cuda runs on it: it does the work where it has a kernel. */
bool cuda_kernels();

/** Call it before MLX's first work. On CUDA a decoding step of a large model becomes one CUDA graph, or a few, instead
 * of one for each hundred kernels, which costs the host more than the GPU takes to run them. Leaves alone what the
 * user's MLX_MAX_OPS_PER_BUFFER and MLX_MAX_MB_PER_BUFFER say. */
void prepare_device();

/** For tests: MLX's own ops everywhere. Set it before weights are loaded. */
void force_mlx_ops(bool force);

} // namespace parallm
