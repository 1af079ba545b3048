// A part of an array along its first axis.
#pragma once

#include <mlx/mlx.h>

namespace parallm {

/** x[first:last] */
inline mlx::core::array rows(const mlx::core::array& x, int first, int last) {
  mlx::core::Shape start(x.ndim(), 0), stop = x.shape();
  start[0] = first;
  stop[0] = last;
  return mlx::core::slice(x, start, stop);
}

} // namespace parallm
