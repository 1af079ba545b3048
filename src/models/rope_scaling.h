// The Rope that a config.json asks for: `rope_theta`, `rope_scaling` (or
// transformers 5's `rope_parameters`, which holds both). Types: default,
// linear, dynamic, llama3, yarn as in transformers' modeling_rope_utils.py;
// longrope (its old name: su), mrope, proportional and yarn's other names as in
// mlx-lm's models/rope_utils.py; and
// frequency_factors, which no config.json has: a GGUF file's rope_freqs tensor,
// one divisor a frequency.
#pragma once

#include "models/config.h"
#include "nn/rope.h"

namespace parallm {

/** What an architecture means where config.json is silent. */
struct RopeDefaults {
  double theta = 10000;
  bool traditional = false;
  double partial = 1; // of a head's dims, those rotated
  std::string layer_type = ""; // picks its part of a `rope_parameters` that has one for each type of layer
};

/** `head_dim`: the model's, of which `partial_rotary_factor` is rotated.
 * Errors: invalid, for an unknown type. */
Rope make_rope(const Config& config, int head_dim, const RopeDefaults& defaults = {});

/** Not scaled. */
Rope plain_rope(int dims, double theta, bool traditional = false);

/** Where a layer rotates: `layer_rope_theta` isn't 0, or without it where the
 * layer's window isn't. */
std::vector<bool> rotating_layers(const Config& config, const std::vector<int>& windows);

/** Whether `rope_parameters` has a part for each type of layer. */
bool has_rope_of(const Config& config, const std::string& layer_type);

} // namespace parallm
