#include "nn/embedding.h"

namespace parallm {

namespace {

/** As mx::dequantize, which takes no groups of 16: the codes first, then their
 * scales and biases. */
mx::array dequantize_small_groups(
    const mx::array& words,
    const mx::array& scales,
    const mx::array& biases,
    const Quantization& how) {
  int rows = words.shape(0), inputs = words.shape(1) * 32 / how.bits;
  mx::Shape ones{rows, inputs / 32};
  auto codes = mx::dequantize(words, mx::ones(ones, scales.dtype()), mx::zeros(ones, scales.dtype()), 32, how.bits);
  auto groups = mx::reshape(codes, {rows, inputs / how.group_size, how.group_size});
  return mx::reshape(groups * mx::expand_dims(scales, -1) + mx::expand_dims(biases, -1), {rows, inputs});
}

} // namespace

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
  scales = mx::astype(scales, dtype_);
  auto biases = mx::astype(mx::take(*matrix_.biases, ids, 0), dtype_);
  return how.group_size < 32 ? dequantize_small_groups(rows, scales, biases, how)
                             : mx::dequantize(rows, scales, biases, how.group_size, how.bits);
}

mx::array Embedding::as_linear(const mx::array& x) const {
  return matrix_.multiply(x, {});
}

} // namespace parallm
