// Numbers of the host as an array. Engine thread only.
#pragma once

#include <mlx/mlx.h>

#include <vector>

namespace parallm {
namespace mx = mlx::core;

/** A copy, in the memory of the device that kernels run on. */
mx::array host_array(const void* values, mx::Shape shape, mx::Dtype type);

template <typename T>
mx::array host_array(const std::vector<T>& values, mx::Shape shape) {
  return host_array(values.data(), std::move(shape), mx::TypeToDtype<T>());
}

/** [n] */
template <typename T>
mx::array host_array(const std::vector<T>& values) {
  return host_array(values, {static_cast<int>(values.size())});
}

} // namespace parallm
