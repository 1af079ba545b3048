// CUDA text to a GPU's own code, by NVRTC, which MLX's CUDA library brings along. MLX compiles the text of
// mx::fast::cuda_kernel at each start, 1.5 to 3 s a kernel, most of it for headers of its own; here it has none of
// them, and what was compiled once is kept on disk.
#pragma once

#include <string>

namespace parallm::cuda {

/** NVRTC is in this process. */
bool can_compile();

/** The code (cubin) of `text` for the GPU of compute capability `major`.`minor`: from the cache, else compiled.
 * Hopper's has wgmma (sm_90a). Errors: runtime_error with the compiler's log. Any thread.
 *
 * The cache: PARALLM_CUDA_CACHE, or XDG_CACHE_HOME/mlx_parallm/cuda, or ~/.cache/mlx_parallm/cuda; a file for each
 * text, written under another name first; one that is not whole is compiled anew, and a folder that can't be written
 * costs time alone. */
std::string compiled(const std::string& text, int major, int minor);

} // namespace parallm::cuda
