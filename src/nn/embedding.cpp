#include "nn/embedding.h"

namespace parallm {

Embedding::Embedding(Weights& weights, const std::string& name, int count, int dims)
    : matrix_(weights, name, count, dims), rotation_(take_rotation(weights, name, dims)), dtype_(weights.dtype()) {}

mx::array Embedding::operator()(const mx::array& ids) const {
  auto rows = mx::take(matrix_.weight, ids, 0);
  if (!matrix_.quantization) {
    return mx::astype(rows, dtype_);
  }
  auto& how = *matrix_.quantization;
  auto scales = mx::take(*matrix_.scales, ids, 0);
  std::optional<mx::array> biases;
  if (matrix_.biases) {
    biases = mx::take(*matrix_.biases, ids, 0);
  }
  auto x = dequantize(rows, scales, biases, how, dtype_, matrix_.factor);
  if (!rotation_) {
    return x;
  }
  return mx::astype(rotation_->back(mx::astype(x, mx::float16)), dtype_); // rounded as they were when they were packed
}

mx::array Embedding::as_linear(const mx::array& x) const {
  return matrix_.multiply(rotation_ ? (*rotation_)(x) : x, {});
}

} // namespace parallm
