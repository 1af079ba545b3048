// A model in another form, written as a folder that MLX programs open: what mlx_lm.convert does. One call at a time, on
// a thread that does nothing else with MLX.
#pragma once

#include "hub/hub.h"

#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

struct ConvertOptions {
  std::string model_path; // a folder, a .gguf file or a model's name on the Hugging Face hub
  OnFetch on_fetch; // where files come from the hub
  std::string mlx_path; // the folder to write: not there yet, or empty
  bool quantize = false;
  std::string mode = "affine";
  std::optional<int> group_size; // the mode's own, where none is given
  std::optional<int> bits;
  std::string recipe; // mixed_2_6 ...: which layers get how many bits
  bool dequantize = false;
  std::string dtype; // of what isn't quantized; empty: config.json's torch_dtype, else as it is
};

struct ConvertProgress {
  size_t written; // bytes of weights
  size_t total;
};

struct Converted {
  size_t bytes; // of weights
  size_t parameters;
  size_t widened; // quantized layers that MLX has no kind for
};

/** Writes into a folder beside `mlx_path` and renames it at the end, so that a folder of that name is whole. Errors:
 * invalid, for a target that exists, options that exclude each other, or a model that can't be opened. */
Converted convert(const ConvertOptions& options, const std::function<void(const ConvertProgress&)>& progress = {});

/** "affine", "mxfp4" ...; "mixed_2_6" ...: for help texts. */
std::vector<std::string> convert_modes();
std::vector<std::string> convert_recipes();

} // namespace parallm
