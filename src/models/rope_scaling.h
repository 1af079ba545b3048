// The Rope that a config.json asks for: `rope_theta`, `rope_scaling` (or
// transformers 5's `rope_parameters`, which holds both). Types: default,
// linear, dynamic, llama3, yarn as in transformers' modeling_rope_utils.py; and
// frequency_factors, which no config.json has: a GGUF file's rope_freqs tensor,
// one divisor a frequency.
#pragma once

#include "models/config.h"
#include "nn/rope.h"

namespace parallm {

/** `head_dim`: the model's, of which `partial_rotary_factor` is rotated.
 * Errors: invalid, for an unknown type. */
Rope make_rope(const Config& config, int head_dim);

} // namespace parallm
