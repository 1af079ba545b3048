// How much memory the KV cache may count on.
#pragma once

#include <cstddef>

namespace parallm {

/** Bytes free for MLX's default device now: of the GPU where there is one (on
 * Apple silicon what Metal recommends to use at most), else of the machine,
 * with what the kernel would give back. */
size_t free_memory();

} // namespace parallm
