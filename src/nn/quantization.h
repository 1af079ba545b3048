// How weights are quantized: MLX's modes and what config.json says of them. Plain data; any thread.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

struct Quantization {
  int group_size;
  int bits;
  std::string mode = "affine";

  bool operator==(const Quantization&) const = default;
};

/** What config.json says: one kind for all layers, and layers that differ
 * (nothing: not quantized). */
struct Quantizations {
  std::optional<Quantization> all;
  std::map<std::string, std::optional<Quantization>> layers;
};

/** "affine", "mxfp4", "nvfp4", "mxfp8". */
std::vector<std::string> quantization_modes();

/** A mode with its own group size and bits where none are given (affine: 64 and 4). Errors: invalid, beginning with
 * `where`, for what MLX doesn't have. */
Quantization
make_quantization(const std::string& where, const std::string& mode, std::optional<int> group, std::optional<int> bits);

/** What a layer's tensors tell, where config.json names a kind for all layers and this one may differ (mlx-lm's
 * infer_quant_config): `words` uint32 of codes and `groups` scales a row, of `inputs` weights. Nothing where they fit
 * no mode. */
std::optional<Quantization> infer_quantization(int words, int groups, int inputs, bool byte_scales);

} // namespace parallm
