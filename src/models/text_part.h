// The text part of models that also see or hear: its config, and its tensors
// under the names of the model alone.
#pragma once

#include "models/config.h"
#include "nn/weights.h"

namespace parallm {

/** `text_config` where there is one, else `config` itself, which older wrappers
 * spread over the top. Tensors lose the wrapper's prefix; those that begin with
 * one of `others` are the other parts' and are left out. */
Config text_part(const Config& config, Weights& weights, const std::vector<std::string>& others);

} // namespace parallm
