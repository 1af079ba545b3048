#include "models/text_part.h"

namespace parallm {

Config text_part(const Config& config, Weights& weights, const std::vector<std::string>& others) {
  for (auto& prefix : others) {
    weights.ignore(prefix);
  }
  // transformers since 4.52 and before, and mlx-lm.
  weights.rename("model.language_model.", "model.");
  weights.rename("language_model.", "");
  if (!config.has("text_config")) {
    return config;
  }
  auto text = config.object("text_config");
  // Wrappers say this for the whole.
  if (config.has("tie_word_embeddings") && !text.has("tie_word_embeddings")) {
    text.json["tie_word_embeddings"] = config.boolean("tie_word_embeddings", false);
  }
  return text;
}

} // namespace parallm
