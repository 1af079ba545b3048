// Tensors over a mapped file, without a copy where MLX's backend allows it. Engine thread only (MLX arrays).
#pragma once

#include "base/mapped_file.h"

#include <mlx/mlx.h>

#include <memory>

namespace parallm {
namespace mx = mlx::core;

/** The bytes at `offset`, which must lie in the file, as an array. On the CPU backend it is the mapping itself, which
 * it keeps alive; elsewhere, and where the bytes aren't aligned for `dtype`, it is a copy, and the file's pages are
 * dropped. */
mx::array mapped_array(std::shared_ptr<const MappedFile> file, size_t offset, mx::Shape shape, mx::Dtype dtype);

} // namespace parallm
