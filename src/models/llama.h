// Llama (arXiv 2302.13971, 2307.09288, 2407.21783) and models of its shape:
// Mistral (arXiv 2310.06825), SmolLM.
#pragma once

#include "models/config.h"
#include "models/model.h"
#include "nn/weights.h"

namespace parallm {

std::unique_ptr<Model> make_llama(const Config& config, Weights& weights);

} // namespace parallm
