// What config.json says of quantized weights, and other tools' packings turned into MLX's: AWQ and GPTQ (in either's
// layout), compressed-tensors' int4, NVFP4, mxfp4, mxfp8 and float8, Model Optimizer's NVFP4, mxfp8 and float8,
// DeepSeek's float8 with block scales, BitNet's ternary weights. What becomes of those that mlx-lm reads is its choice
// (mlx_lm/utils.py, load_model), but for BitNet's, which mlx-lm leaves packed. Float8 with other scales than powers of
// 2 becomes bfloat16. Engine thread only.
#pragma once

#include "models/config.h"
#include "nn/quantization.h"

#include <mlx/mlx.h>

#include <string>
#include <unordered_map>

namespace parallm {
namespace mx = mlx::core;

/** Reads "quantization" (MLX's), else "quantization_config" (MLX's own copy, or another tool's with a "quant_method");
 * a foreign method's tensors are replaced in `arrays`, lazily. Errors: invalid, naming the field, the method or the
 * tensor. */
Quantizations read_quantizations(const Config& config, std::unordered_map<std::string, mx::array>& arrays);

} // namespace parallm
