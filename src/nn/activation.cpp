#include "nn/activation.h"

#include "base/error.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "nn/device.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace parallm {
namespace mx = mlx::core;

namespace {

mx::array number(float value, const mx::array& like) {
  return mx::array(value, like.dtype());
}

mx::array relu(const mx::array& x) {
  return mx::maximum(x, number(0, x));
}

constexpr struct {
  const char* name;
  Activation act;
} activations[] = {
    {"silu", silu},
    {"swish", silu},
    {"gelu", gelu},
    {"gelu_new", gelu_tanh},
    {"gelu_fast", gelu_tanh},
    {"gelu_pytorch_tanh", gelu_tanh},
    {"relu", relu},
    {"relu2", relu_squared},
    {"sigmoid", [](const mx::array& x) { return mx::sigmoid(x); }},
};

} // namespace

mx::array swiglu(const mx::array& gate, const mx::array& up) {
  if (on_cpu()) {
    return cpu::swiglu(gate, up);
  }
  if (cuda_kernels() && gate.ndim() == 2 && gate.dtype() == up.dtype()) {
    auto fused = cuda::gated_matmul(gate, up);
    return fused ? *fused : cuda::swiglu(gate, up);
  }
  return mx::multiply(mx::multiply(gate, mx::sigmoid(gate)), up);
}

mx::array clamped_swiglu(const mx::array& gate, const mx::array& up, float alpha, float limit) {
  auto g = mx::minimum(gate, number(limit, gate));
  auto u = mx::clip(up, number(-limit, up), number(limit, up));
  return (u + number(1, up)) * (g * mx::sigmoid(number(alpha, gate) * g));
}

mx::array silu(const mx::array& x) {
  return x * mx::sigmoid(x);
}

mx::array gelu(const mx::array& x) {
  return x * (number(1, x) + mx::erf(x * number(std::numbers::sqrt2 / 2, x))) * number(0.5f, x);
}

mx::array gelu_tanh(const mx::array& x) {
  auto inner = number(std::sqrt(2 / std::numbers::pi), x) * (x + number(0.044715f, x) * x * x * x);
  return number(0.5f, x) * x * (number(1, x) + mx::tanh(inner));
}

mx::array relu_squared(const mx::array& x) {
  return mx::square(relu(x));
}

mx::array softplus(const mx::array& x) {
  return mx::logaddexp(x, number(0, x));
}

Activation activation(const std::string& name) {
  auto* found =
      std::find_if(std::begin(activations), std::end(activations), [&](auto& known) { return known.name == name; });
  if (found == std::end(activations)) {
    std::string known;
    for (auto& a : activations) {
      known += (known.empty() ? "" : ", ") + std::string(a.name);
    }
    fail(Kind::invalid, "[activation] the activation must be one of {}; got '{}'", known, name);
  }
  return found->act;
}

mx::array gated(Activation act, const mx::array& gate, const mx::array& up) {
  return act == &silu ? swiglu(gate, up) : act(gate) * up;
}

} // namespace parallm
