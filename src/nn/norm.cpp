#include "nn/norm.h"

#include "kernels/cpu/ops.h"
#include "nn/device.h"

namespace parallm {

RMSNorm::RMSNorm(Weights& weights, const std::string& name, int dims, float eps)
    : weight_(weights.take(name + ".weight", {dims}, weights.dtype())), eps_(eps) {}

mx::array RMSNorm::operator()(const mx::array& x) const {
  return on_cpu() ? cpu::rms_norm(x, weight_, eps_) : mx::fast::rms_norm(x, weight_, eps_);
}

} // namespace parallm
