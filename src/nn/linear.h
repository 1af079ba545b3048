// x Wᵀ + b, dense or quantized: which of the two, and whether there is a bias,
// the checkpoint's tensors say. Engine thread only.
#pragma once

#include "nn/weights.h"

namespace parallm {

/** A [outputs, inputs] matrix as the checkpoint holds it, under
 * `<name>.weight`. Linear and Embedding share it. */
struct Matrix {
  Matrix(Weights& weights, const std::string& name, int outputs, int inputs);

  mx::array weight; // dense, or packed codes
  std::optional<mx::array> scales;
  std::optional<mx::array> biases; // affine quantization's
  std::optional<Quantization> quantization;

  /** x [T,inputs] -> [T,outputs]. */
  mx::array multiply(const mx::array& x, const std::optional<mx::array>& bias) const;
};

class Linear {
 public:
  /** `bias`: `<name>.bias` must exist; it is used wherever it exists. */
  Linear(Weights& weights, const std::string& name, int outputs, int inputs, bool bias = false);

  /** x [T,inputs] -> [T,outputs]. */
  mx::array operator()(const mx::array& x) const;

 private:
  Matrix matrix_;
  std::optional<mx::array> bias_; // [outputs]
};

} // namespace parallm
