#include "models/head.h"

namespace parallm {

std::optional<Linear> untied_head(const Config& config, Weights& weights, int vocabulary, int dims) {
  if (config.boolean("tie_word_embeddings", !weights.has("lm_head.weight"))) {
    weights.ignore("lm_head.");
    return {};
  }
  return Linear(weights, "lm_head", vocabulary, dims);
}

} // namespace parallm
