// The output layer, which many models tie to their embedding. Engine thread only.
#pragma once

#include "models/config.h"
#include "nn/linear.h"

#include <optional>

namespace parallm {

/** lm_head, or nothing where `tie_word_embeddings` says that the embedding is
 * the output layer. Where config.json is silent (HF's and mlx-lm's defaults
 * differ), the file's own tensors tell. */
std::optional<Linear> untied_head(const Config& config, Weights& weights, int vocabulary, int dims);

} // namespace parallm
