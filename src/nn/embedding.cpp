#include "nn/embedding.h"

namespace parallm {

Embedding::Embedding(Weights& weights, const std::string& name, int count, int dims)
    : matrix_(weights, name, count, dims), dtype_(weights.dtype()) {}

mx::array Embedding::operator()(const mx::array& ids) const {
  auto rows = mx::take(matrix_.weight, ids, 0);
  if (!matrix_.quantization) {
    return mx::astype(rows, dtype_);
  }
  auto& how = *matrix_.quantization;
  auto scales = mx::take(*matrix_.scales, ids, 0);
  if (!matrix_.biases) {
    return mx::dequantize(rows, scales, {}, how.group_size, how.bits, how.mode, {}, dtype_);
  }
  // In the activations' dtype, so that a float32 run isn't rounded to 16 bits.
  return mx::dequantize(
      rows,
      mx::astype(scales, dtype_),
      mx::astype(mx::take(*matrix_.biases, ids, 0), dtype_),
      how.group_size,
      how.bits);
}

mx::array Embedding::as_linear(const mx::array& x) const {
  return matrix_.multiply(x, {});
}

} // namespace parallm
