// x Wᵀ + b, dense or quantized: which of the two, and whether there is a bias,
// the checkpoint's tensors say. Engine thread only.
#pragma once

#include "nn/rotation.h"
#include "nn/weights.h"

namespace parallm {

/** Codes [..,inputs*bits/32] to weights [..,inputs], in groups of 16 too, which mx::dequantize doesn't take. Scales and
 * biases become `dtype` first, so that a float32 result isn't rounded to 16 bits. `factor`: of all the scales, one
 * number. */
mx::array dequantize(
    const mx::array& codes,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    const Quantization& how,
    mx::Dtype dtype,
    const std::optional<mx::array>& factor = {});

/** `<name>.global_scale` as MLX stores it for nvfp4, the greatest weight, is 6 * 448 (the greatest code and scale)
 * times the factor of the scales. */
constexpr float global_scale_unit = 6 * 448;

/** That of the layer's inputs, where it has one. */
std::optional<Rotation> take_rotation(Weights& weights, const std::string& layer, int inputs);

/** A [outputs, inputs] matrix as the checkpoint holds it, under
 * `<name>.weight`, or `count` of them stacked, [count, outputs, inputs].
 * Linear, Embedding and Experts share it. */
struct Matrix {
  Matrix(Weights& weights, const std::string& name, int outputs, int inputs, int count = 0);

  mx::array weight; // dense, or packed codes
  std::optional<mx::array> scales;
  std::optional<mx::array> biases; // affine quantization's
  std::optional<mx::array> factor; // of nvfp4's scales: float32, or [count]
  std::optional<Quantization> quantization;

  /** x [T,inputs], whose inputs may be several axes -> [T,outputs]. */
  mx::array multiply(const mx::array& x, const std::optional<mx::array>& bias) const;
  /** Row t of x [T,inputs] by matrix which[t] (int32, rising) -> [T,outputs];
   * bias [count,outputs]. */
  mx::array multiply_by_group(const mx::array& x, const mx::array& which, const std::optional<mx::array>& bias) const;

 private:
  mx::array multiply_quantized(const mx::array& x) const; // elsewhere than on a CPU
};

class Linear {
 public:
  /** `bias`: `<name>.bias` must exist; it is used wherever it exists. */
  Linear(Weights& weights, const std::string& name, int outputs, int inputs, bool bias = false);

  /** x [T,inputs], whose inputs may be several axes -> [T,outputs]. */
  mx::array operator()(const mx::array& x) const;

 private:
  friend std::vector<mx::array>
  apply_each(const std::vector<const Linear*>& layers, const mx::array& x, const std::vector<mx::Shape>& outs);

  Matrix matrix_;
  std::optional<mx::array> bias_; // [outputs]
  std::optional<Rotation> rotation_;
};

/** Several layers of one x [T,inputs], each result in its shape of `outs`: [T,...]. */
std::vector<mx::array>
apply_each(const std::vector<const Linear*>& layers, const mx::array& x, const std::vector<mx::Shape>& outs);

/** x [T,inputs] by a matrix w [outputs,inputs] that is never quantized -> [T,outputs]. */
mx::array product(const mx::array& x, const mx::array& w);

/** x + y, both [T,D]: the sum that goes around a layer. */
mx::array add_residual(const mx::array& x, const mx::array& y);

} // namespace parallm
