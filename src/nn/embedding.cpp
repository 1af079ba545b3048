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
  std::optional<mx::array> biases;
  if (matrix_.biases) {
    biases = mx::take(*matrix_.biases, ids, 0);
  }
  return dequantize(rows, scales, biases, how, dtype_);
}

mx::array Embedding::as_linear(const mx::array& x) const {
  return matrix_.multiply(x, {});
}

} // namespace parallm
