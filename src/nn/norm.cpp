#include "nn/norm.h"

#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "nn/device.h"

namespace parallm {

namespace {

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  if (cuda_kernels() && cuda::norms(x, weight)) {
    return cuda::rms_norm(x, weight, eps);
  }
  if (!on_cpu()) {
    return mx::fast::rms_norm(x, weight, eps);
  }
  auto rows = mx::reshape(x, {-1, x.shape(-1)});
  return mx::reshape(cpu::rms_norm(rows, weight, eps), x.shape());
}

} // namespace

RMSNorm::RMSNorm(Weights& weights, const std::string& name, int dims, float eps, float offset)
    : weight_(weights.take(name + ".weight", {dims}, weights.dtype())), eps_(eps) {
  if (offset != 0) {
    weight_ = weight_ + mx::array(offset, weight_.dtype());
    mx::eval(weight_);
  }
}

mx::array RMSNorm::operator()(const mx::array& x) const {
  return rms_norm(x, weight_, eps_);
}

mx::array rms_norm(const mx::array& x, float eps) {
  return rms_norm(x, mx::ones({x.shape(-1)}, x.dtype()), eps);
}

LayerNorm::LayerNorm(Weights& weights, const std::string& name, int dims, float eps, bool bias, bool affine)
    : eps_(eps) {
  if (affine) {
    weight_ = weights.take(name + ".weight", {dims}, weights.dtype());
  }
  if (bias || weights.has(name + ".bias")) {
    bias_ = weights.take(name + ".bias", {dims}, weights.dtype());
  }
}

mx::array LayerNorm::operator()(const mx::array& x) const {
  return mx::fast::layer_norm(x, weight_, bias_, eps_);
}

} // namespace parallm
