// A checkpoint in another form, as mlx-lm's convert writes it: cast, quantized, dequantized, split into shards. The
// architecture's own constructor says which tensors there are, under which names and which can be quantized, so that
// whatever can be served can be converted. Engine thread only.
#pragma once

#include "models/checkpoint.h"
#include "models/safetensors.h"

#include <boost/json/object.hpp>

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

struct Conversion {
  /** Of the floats that aren't codes. Nothing: config.json's torch_dtype, else as they are. */
  std::optional<mx::Dtype> dtype;
  /** For the layers that aren't quantized yet. */
  std::optional<Quantization> quantize;
  std::string recipe; // of quant_recipes(); empty: the architecture's own rules
  bool dequantize = false;
};

struct ConvertedModel {
  boost::json::object config;
  std::vector<NamedArray> tensors; // to be computed as they are written
  size_t bytes = 0;
  size_t parameters = 0;
  /** Quantized layers that MLX has no kind for (GGUF's groups of 16, NVFP4 with a global scale): they became floats, or
   * were quantized anew. */
  size_t widened = 0;
};

/** Errors: as make_model's, and invalid where a rule doesn't fit. */
ConvertedModel convert_model(Checkpoint checkpoint, const Conversion& how);

/** config.json, model.safetensors or its shards, and model.safetensors.index.json. A tensor is computed when it is
 * written, so memory holds one of them. `written` is told each one's bytes. */
void write_model(
    const std::string& folder,
    ConvertedModel model,
    const std::function<void(size_t)>& written = {},
    size_t shard_bytes = size_t{5} << 30);

} // namespace parallm
