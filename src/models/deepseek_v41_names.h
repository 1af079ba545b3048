// DeepSeek V4.1 as published: DeepSeek's own names, float8 and 4-bit weights.
#pragma once

#include "nn/weights.h"

namespace parallm {

/** Names and layouts of the published checkpoint to those that the model asks for; nothing where they are there.
 * Weights stay packed. `groups`: of the output projection; `experts`: of a layer. */
void from_published_v41(Weights& weights, int layers, int groups, int experts);

} // namespace parallm
