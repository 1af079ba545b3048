#include "nn/linear.h"

#include "base/error.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "nn/device.h"

#include <algorithm>

namespace parallm {

namespace {

/** Our kernels read every dtype; MLX's ops want all operands in the
 * activations'. */
std::optional<mx::Dtype> stored_dtype(const Weights& weights) {
  return on_cpu() ? std::nullopt : std::optional(weights.dtype());
}

void check_groups(const std::string& name, int inputs, const Quantization& how) {
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
}

/** The codes first, then their scales and biases. */
mx::array dequantize_small_groups(
    const mx::array& codes,
    const mx::array& scales,
    const mx::array& biases,
    const Quantization& how) {
  auto split = scales.shape(), ones = scales.shape(), whole = scales.shape();
  whole.back() *= how.group_size;
  ones.back() = whole.back() / 32;
  split.push_back(how.group_size);
  auto type = scales.dtype();
  auto numbers = mx::dequantize(codes, mx::ones(ones, type), mx::zeros(ones, type), 32, how.bits);
  auto groups = mx::reshape(numbers, split);
  return mx::reshape(groups * mx::expand_dims(scales, -1) + mx::expand_dims(biases, -1), whole);
}

cpu::Operand operand(const Matrix& matrix, const std::optional<mx::array>& bias) {
  cpu::Operand out{.w = matrix.weight, .scales = matrix.scales, .biases = matrix.biases, .bias = bias};
  if (auto& how = matrix.quantization) {
    out.group_size = how->group_size;
    out.bits = how->bits;
    out.mode = how->mode;
    out.global_scale = matrix.factor;
  }
  return out;
}

/** For kernels/cuda, where they run and have one for x by this. */
std::optional<cuda::Factor> cuda_factor(const mx::array& x, const Matrix& matrix) {
  if (!cuda_kernels() || matrix.weight.ndim() != 2) {
    return {};
  }
  cuda::Factor factor{matrix.weight, matrix.scales, matrix.biases};
  if (auto& how = matrix.quantization) {
    if (how->mode != "affine") {
      return {};
    }
    factor.group_size = how->group_size;
    factor.bits = how->bits;
  }
  return cuda::multiplies(x, factor) ? std::optional(factor) : std::nullopt;
}

/** MLX's gather_mm, which on a CPU (in tests) takes float32 only, and on CUDA (0.32.4) gives wrong sums where it is
 * told that `which` rises. */
mx::array gather_matmul(const mx::array& rows, const mx::array& weight, const mx::array& which) {
  bool widen = mx::default_device() == mx::Device::cpu;
  auto x = widen ? mx::astype(rows, mx::float32) : rows;
  auto w = widen ? mx::astype(weight, mx::float32) : weight;
  return mx::astype(mx::gather_mm(x, mx::swapaxes(w, 1, 2), {}, which, !on_cuda()), rows.dtype());
}

/** MLX's quantized_matmul is right and fast for this on CUDA. In 0.32.4 it is wrong where a row is one group, has no
 * kernel for some short rows, and is slower than a dense matmul for float32, for odd shapes (which it also compiles for
 * most of a minute) and for many rows of x. */
bool mlx_multiplies_on_cuda(const mx::array& x, const mx::array& weight, const Quantization& how) {
  int rows = x.shape(0), inputs = x.shape(1);
  bool tiled = weight.shape(0) % 128 == 0 && inputs % std::max(64, how.group_size) == 0 && how.bits % 4 == 0;
  return x.dtype() != mx::float32 && inputs > how.group_size && inputs >= 128 && (rows < 8 || (tiled && rows < 192));
}

} // namespace

mx::array dequantize(
    const mx::array& codes,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    const Quantization& how,
    mx::Dtype dtype,
    const std::optional<mx::array>& factor) {
  if (factor) {
    return mx::astype(dequantize(codes, scales, biases, how, mx::float32) * *factor, dtype);
  }
  if (!biases) {
    return mx::dequantize(codes, scales, {}, how.group_size, how.bits, how.mode, {}, dtype);
  }
  auto s = mx::astype(scales, dtype), b = mx::astype(*biases, dtype);
  return how.group_size < 32 ? dequantize_small_groups(codes, s, b, how)
                             : mx::dequantize(codes, s, b, how.group_size, how.bits);
}

std::optional<Rotation> take_rotation(Weights& weights, const std::string& layer, int inputs) {
  int block = weights.rotation_block(layer);
  if (block == 0) {
    return {};
  }
  if (inputs % block != 0) {
    fail(
        Kind::invalid,
        "[linear] {} has {} inputs, which its rotation's blocks of {} don't divide",
        layer,
        inputs,
        block);
  }
  return Rotation(weights.take(layer + ".signs", {inputs}, mx::float32), block);
}

Matrix::Matrix(Weights& weights, const std::string& name, int outputs, int inputs, int count)
    : weight(mx::array(0)), quantization(weights.quantization(name, inputs)) {
  const auto shape = [&](int columns) {
    return count > 0 ? mx::Shape{count, outputs, columns} : mx::Shape{outputs, columns};
  };
  if (!quantization) {
    weight = weights.take(name + ".weight", shape(inputs), stored_dtype(weights));
    return;
  }
  check_groups(name, inputs, *quantization);
  weight = weights.take(name + ".weight", shape(inputs * quantization->bits / 32));
  auto groups = shape(inputs / quantization->group_size);
  bool affine = quantization->mode == "affine";
  scales = weights.take(
      name + ".scales",
      groups,
      affine ? stored_dtype(weights) : std::nullopt); // others: 8-bit floats
  if (affine) {
    biases = weights.take(name + ".biases", groups, stored_dtype(weights));
  }
  if (quantization->mode == "nvfp4" && weights.has(name + ".global_scale")) {
    auto greatest = weights.take(name + ".global_scale", count > 0 ? mx::Shape{count} : mx::Shape{}, mx::float32);
    factor = mx::divide(greatest, mx::array(global_scale_unit));
  }
}

mx::array Matrix::multiply(const mx::array& rows, const std::optional<mx::array>& bias) const {
  if (on_cpu()) {
    return cpu::matmul(rows, operand(*this, bias));
  }
  auto x = rows.ndim() > 2 ? mx::flatten(rows, 1, -1) : rows;
  auto factor = cuda_factor(x, *this);
  auto y = factor    ? cuda::matmul(x, *factor)
      : quantization ? multiply_quantized(x)
                     : mx::matmul(x, mx::transpose(weight));
  if (this->factor) {
    y = mx::astype(y * *this->factor, y.dtype());
  }
  return bias ? mx::add(y, *bias) : y;
}

mx::array Matrix::multiply_quantized(const mx::array& x) const {
  auto& how = *quantization;
  if (cuda_kernels() && how.mode == "affine" && scales->dtype() == x.dtype() &&
      cuda::multiplies(x.dtype(), how.group_size, how.bits)) {
    return mx::matmul(x, mx::transpose(cuda::dequantize(weight, *scales, *biases, how.group_size, how.bits)));
  }
  if (on_cuda() && !mlx_multiplies_on_cuda(x, weight, how)) {
    return mx::matmul(x, mx::transpose(dequantize(weight, *scales, biases, how, x.dtype())));
  }
  return mx::quantized_matmul(x, weight, *scales, biases, true, how.group_size, how.bits, how.mode);
}

mx::array Matrix::multiply_by_group(const mx::array& x, const mx::array& which, const std::optional<mx::array>& bias)
    const {
  if (on_cpu() && !quantization) {
    return cpu::grouped_matmul(x, weight, which, bias);
  }
  if (on_cpu()) {
    auto& how = *quantization;
    return cpu::grouped_quantized_matmul(
        x, weight, *scales, biases, how.group_size, how.bits, which, bias, how.mode, factor);
  }
  auto rows = mx::expand_dims(x, 1);
  auto y = quantization ? mx::gather_qmm(
                              rows,
                              weight,
                              *scales,
                              biases,
                              {},
                              which,
                              true,
                              quantization->group_size,
                              quantization->bits,
                              quantization->mode,
                              {},
                              true)
                        : gather_matmul(rows, weight, which);
  y = mx::squeeze(y, 1);
  if (factor) {
    y = mx::astype(y * mx::expand_dims(mx::take(*factor, which), 1), y.dtype());
  }
  return bias ? y + mx::take(*bias, which, 0) : y;
}

Linear::Linear(Weights& weights, const std::string& name, int outputs, int inputs, bool bias)
    : matrix_(weights, name, outputs, inputs) {
  if (bias || weights.has(name + ".bias")) {
    bias_ = weights.take(name + ".bias", {outputs}, weights.dtype());
  }
  rotation_ = take_rotation(weights, name, inputs);
}

mx::array Linear::operator()(const mx::array& x) const {
  return matrix_.multiply(rotation_ ? (*rotation_)(x) : x, bias_);
}

std::vector<mx::array>
apply_each(const std::vector<const Linear*>& layers, const mx::array& x, const std::vector<mx::Shape>& outs) {
  const bool straight =
      std::none_of(layers.begin(), layers.end(), [](auto* layer) { return layer->rotation_.has_value(); });
  if (on_cpu() && straight) {
    std::vector<cpu::Operand> operands;
    for (auto* layer : layers) {
      operands.push_back(operand(layer->matrix_, layer->bias_));
    }
    return cpu::matmuls(x, operands, outs);
  }
  std::vector<mx::array> results;
  std::vector<cuda::Factor> factors;
  for (auto* layer : layers) {
    auto factor = straight ? cuda_factor(x, layer->matrix_) : std::nullopt;
    if (factor && layer->matrix_.quantization == layers[0]->matrix_.quantization) {
      factors.push_back(*factor);
    }
  }
  if (factors.size() == layers.size() && int(layers.size()) <= cuda::most_matrices) {
    results = cuda::matmuls(x, factors);
    for (size_t i = 0; i < layers.size(); ++i) {
      auto& bias = layers[i]->bias_;
      results[i] = mx::reshape(bias ? results[i] + *bias : results[i], outs[i]);
    }
    return results;
  }
  for (size_t i = 0; i < layers.size(); ++i) {
    results.push_back(mx::reshape((*layers[i])(x), outs[i]));
  }
  return results;
}

mx::array product(const mx::array& x, const mx::array& w) {
  return on_cpu() ? cpu::matmul(x, w) : mx::matmul(x, mx::transpose(w));
}

mx::array add_residual(const mx::array& x, const mx::array& y) {
  if (on_cpu()) {
    return cpu::add(x, y);
  }
  return cuda_kernels() ? cuda::add(x, y) : x + y;
}

} // namespace parallm
