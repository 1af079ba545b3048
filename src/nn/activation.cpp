#include "nn/activation.h"

#include "kernels/cpu/ops.h"
#include "nn/device.h"

namespace parallm {
namespace mx = mlx::core;

mx::array swiglu(const mx::array& gate, const mx::array& up) {
  return on_cpu() ? cpu::swiglu(gate, up) : mx::multiply(mx::multiply(gate, mx::sigmoid(gate)), up);
}

} // namespace parallm
