#include "nn/linear.h"

#include "base/error.h"
#include "kernels/cpu/ops.h"
#include "nn/device.h"

namespace parallm {

namespace {

/** Our kernels read every dtype; MLX's ops want all operands in the
 * activations'. */
std::optional<mx::Dtype> stored_dtype(const Weights& weights) {
  return on_cpu() ? std::nullopt : std::optional(weights.dtype());
}

mx::array take_dense(Weights& weights, const std::string& name, int outputs, int inputs) {
  return weights.take(name + ".weight", {outputs, inputs}, stored_dtype(weights));
}

mx::array take_codes(Weights& weights, const std::string& name, int outputs, int inputs, const Quantization& how) {
  if (how.group_size <= 0 || how.bits <= 0 || inputs % how.group_size != 0) {
    fail(
        Kind::invalid,
        "[linear] {} has {} inputs, which its quantization (group_size {}, "
        "bits {}) doesn't divide",
        name,
        inputs,
        how.group_size,
        how.bits);
  }
  return weights.take(name + ".weight", {outputs, inputs * how.bits / 32});
}

} // namespace

Matrix::Matrix(Weights& weights, const std::string& name, int outputs, int inputs)
    : weight(mx::array(0)), quantization(weights.quantization(name, inputs)) {
  if (!quantization) {
    weight = take_dense(weights, name, outputs, inputs);
    return;
  }
  weight = take_codes(weights, name, outputs, inputs, *quantization);
  mx::Shape groups{outputs, inputs / quantization->group_size};
  bool affine = quantization->mode == "affine";
  scales = weights.take(
      name + ".scales",
      groups,
      affine ? stored_dtype(weights) : std::nullopt); // others: 8-bit floats
  if (affine) {
    biases = weights.take(name + ".biases", groups, stored_dtype(weights));
  }
}

mx::array Matrix::multiply(const mx::array& x, const std::optional<mx::array>& bias) const {
  if (on_cpu() && !quantization) {
    return cpu::matmul(x, weight, bias);
  }
  if (on_cpu()) {
    auto& how = *quantization;
    return cpu::quantized_matmul(x, weight, *scales, biases, how.group_size, how.bits, bias, how.mode);
  }
  auto y = quantization
      ? mx::quantized_matmul(
            x, weight, *scales, biases, true, quantization->group_size, quantization->bits, quantization->mode)
      : mx::matmul(x, mx::transpose(weight));
  return bias ? mx::add(y, *bias) : y;
}

Linear::Linear(Weights& weights, const std::string& name, int outputs, int inputs, bool bias)
    : matrix_(weights, name, outputs, inputs) {
  if (bias || weights.has(name + ".bias")) {
    bias_ = weights.take(name + ".bias", {outputs}, weights.dtype());
  }
}

mx::array Linear::operator()(const mx::array& x) const {
  return matrix_.multiply(x, bias_);
}

} // namespace parallm
