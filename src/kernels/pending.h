// For a node that becomes part of the one that follows it: what makes an array, while that has not run. Engine thread only.
#pragma once

#include <mlx/mlx.h>
#include <mlx/primitives.h>

namespace parallm {

/** An array's primitive, where it is a T that has not run. */
template <class T>
const T* pending(const mlx::core::array& a) {
  return a.status() == mlx::core::array::Status::unscheduled && a.has_primitive()
      ? dynamic_cast<const T*>(&a.primitive())
      : nullptr;
}

} // namespace parallm
