// What config.json says of quantized weights, and other tools' packings turned into MLX's: AWQ (and GPTQ files in its
// layout), compressed-tensors' int4 and mxfp4, float8 with block scales, BitNet's ternary weights, ModelOpt's NVFP4.
// Which those are, and what becomes of them, is mlx-lm's choice (mlx_lm/utils.py, load_model), but for BitNet's, which
// mlx-lm leaves packed. Engine thread only.
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
