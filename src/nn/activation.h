// Activations of feed-forward blocks. Engine thread only.
#pragma once

#include <mlx/mlx.h>

#include <functional>
#include <string>

namespace parallm {

/** silu(gate) * up, both [T,N] (Shazeer, arXiv 2002.05202). */
mlx::core::array swiglu(const mlx::core::array& gate, const mlx::core::array& up);

/** (up + 1) * gate * sigmoid(alpha * gate), both clamped: gate from above, up on both sides (openai/gpt-oss, model.py).
 */
mlx::core::array clamped_swiglu(const mlx::core::array& gate, const mlx::core::array& up, float alpha, float limit);

mlx::core::array silu(const mlx::core::array& x);
/** x * Phi(x), by erf (Hendrycks and Gimpel, arXiv 1606.08415). */
mlx::core::array gelu(const mlx::core::array& x);
/** Its approximation by tanh. */
mlx::core::array gelu_tanh(const mlx::core::array& x);
/** max(x, 0) squared (So et al., arXiv 2109.08668). */
mlx::core::array relu_squared(const mlx::core::array& x);
/** log(1 + exp(x)). */
mlx::core::array softplus(const mlx::core::array& x);

using Activation = mlx::core::array (*)(const mlx::core::array& x);

/** By config.json's name (transformers' activations.py): silu, gelu, gelu_new,
 * gelu_pytorch_tanh, relu2, ... Errors: invalid, listing the known ones. */
Activation activation(const std::string& name);

/** What becomes of a gate and an up, both [T,N] or rows of experts. */
using GluAct = std::function<mlx::core::array(const mlx::core::array& gate, const mlx::core::array& up)>;

/** act(gate) * up. */
mlx::core::array gated(Activation act, const mlx::core::array& gate, const mlx::core::array& up);

} // namespace parallm
