#include "nn/embedding.h"

#include "kernels/cpu/ops.h"
#include "nn/device.h"

namespace parallm {

Embedding::Embedding(Weights& weights, const std::string& name, int count, int dims)
    : matrix_(weights, name, count, dims), rotation_(take_rotation(weights, name, dims)), dtype_(weights.dtype()) {}

mx::array Embedding::rows(const mx::array& ids) const {
  if (!matrix_.quantization) {
    return mx::astype(mx::take(matrix_.weight, ids, 0), dtype_);
  }
  auto& how = *matrix_.quantization;
  if (on_cpu() && matrix_.biases) {
    return cpu::dequantize_rows(
        ids, matrix_.weight, *matrix_.scales, *matrix_.biases, how.group_size, how.bits, dtype_);
  }
  const auto take = [&](const mx::array& matrix) { return mx::take(matrix, ids, 0); };
  const auto biases = matrix_.biases ? std::optional(take(*matrix_.biases)) : std::nullopt;
  return dequantize(take(matrix_.weight), take(*matrix_.scales), biases, how, dtype_, matrix_.factor);
}

mx::array Embedding::operator()(const mx::array& ids) const {
  auto x = rows(ids);
  if (!rotation_) {
    return x;
  }
  return mx::astype(rotation_->back(mx::astype(x, mx::float16)), dtype_); // rounded as they were when they were packed
}

mx::array Embedding::as_linear(const mx::array& x) const {
  return matrix_.multiply(rotation_ ? (*rotation_)(x) : x, {});
}

} // namespace parallm
