// What the tests of kernels/cuda share.
#pragma once

#include "golden.h"

namespace parallm::test {

/** There is no NVIDIA GPU: says so. */
inline bool skipped() {
  if (!cuda_kernels()) {
    MESSAGE("skipped: no NVIDIA GPU");
  }
  return !cuda_kernels();
}

inline mx::array normal(const mx::Shape& shape, mx::Dtype type, int seed) {
  return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), type);
}

} // namespace parallm::test
