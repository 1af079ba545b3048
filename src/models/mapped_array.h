// A tensor that is a piece of a mapped file: loading copies nothing, and what is never touched is never read. MLX never
// writes into such an array, as it reuses only memory that it allocated. Any thread.
#pragma once

#include "base/mapped_file.h"

#include <mlx/mlx.h>

#include <memory>

namespace parallm {
namespace mx = mlx::core;

/** The bytes from `offset`, which must lie within the file, row by row. The array keeps the mapping alive, and gives
 * its pages back to the system when it goes. Where this build of MLX can't take foreign memory, or the bytes aren't
 * aligned for the type, it is a copy. */
mx::array mapped_array(std::shared_ptr<const MappedFile> file, size_t offset, mx::Shape shape, mx::Dtype dtype);

} // namespace parallm
