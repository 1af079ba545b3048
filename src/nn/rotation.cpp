#include "nn/rotation.h"

#include "nn/device.h"

#include <bit>
#include <cmath>

namespace parallm {

namespace {

/** Orthonormal, [side, side]. */
mx::array hadamard_matrix(int side) {
  std::vector<float> values;
  for (unsigned i = 0; i < unsigned(side); ++i) {
    for (unsigned j = 0; j < unsigned(side); ++j) {
      values.push_back((std::popcount(i & j) % 2 == 0 ? 1 : -1) / std::sqrt(float(side)));
    }
  }
  return mx::array(values.data(), {side, side});
}

} // namespace

mx::array Rotation::transformed(const mx::array& x) const {
  if (on_cpu()) {
    auto blocks = mx::reshape(x, {-1, block_});
    return mx::reshape(mx::hadamard_transform(blocks, 1 / std::sqrt(float(block_))), x.shape());
  }
  // MLX has no transform on CUDA. A block as a matrix needs two short products.
  int columns = 1 << (std::bit_width(unsigned(block_)) / 2), rows = block_ / columns;
  auto blocks = mx::reshape(x, {-1, rows, columns});
  auto turned = mx::matmul(hadamard_matrix(rows), mx::matmul(blocks, hadamard_matrix(columns)));
  return mx::reshape(turned, x.shape());
}

mx::array Rotation::operator()(const mx::array& x) const {
  auto flat = x.ndim() > 2 ? mx::flatten(x, 1, -1) : x;
  return mx::astype(transformed(mx::astype(flat, mx::float32) * signs_), x.dtype());
}

mx::array Rotation::back(const mx::array& x) const {
  return mx::astype(transformed(mx::astype(x, mx::float32)) * signs_, x.dtype());
}

} // namespace parallm
