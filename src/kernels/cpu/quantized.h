// What the matmuls over quantized weights share: the kind of quantization, and the checks of its operands.
#pragma once

#include "kernels/cpu/matmul.h"

#include <mlx/mlx.h>

#include <optional>
#include <string>

namespace parallm::cpu {
namespace mx = mlx::core;

/** Errors: std::invalid_argument, for what MLX doesn't have. */
Quantized quantized(const char* op, const std::string& mode, int group_size, int bits);

/** The matrix whose inputs begin at in[next], which then is past them: w [..,N,K], scales where bits > 0, affine
 * biases, a global scale where it is scaled, a bias. A leading axis is the caller's business, and so is `out`. */
Factor read_factor(const std::vector<mx::array>& in, size_t& next, const Quantized& how, bool bias);

/** Affine: scales and biases of one float type; else scales of bytes alone, and maybe a global one, float32. */
void check_scales(
    const char* op,
    const mx::Shape& groups,
    const Quantized& how,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    const std::optional<mx::array>& global_scale);

} // namespace parallm::cpu
