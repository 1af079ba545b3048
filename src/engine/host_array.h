// Numbers of the host as an array. Engine thread only.
#pragma once

#include "models/model.h"

#include <vector>

namespace parallm {

/** [n] of the values' type, a copy. */
template <typename T>
mx::array host_array(const std::vector<T>& values) {
  return mx::array(values.data(), {static_cast<int>(values.size())});
}

} // namespace parallm
