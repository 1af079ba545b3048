// The table of architectures: config.json's model_type to the function that
// builds it.
#include "base/error.h"
#include "models/config.h"
#include "models/model.h"
#include "nn/weights.h"

#include <algorithm>

namespace parallm {

// Each is defined in the file of its name.
using Maker = std::unique_ptr<Model>(const Config&, Weights&);
Maker make_cohere2;
Maker make_cohere;
Maker make_gemma2;
Maker make_gemma3;
Maker make_gemma3_text;
Maker make_gemma;
Maker make_glm4;
Maker make_glm;
Maker make_granite;
Maker make_llama;
Maker make_olmo2;
Maker make_olmo3;
Maker make_phi3;
Maker make_qwen2;
Maker make_qwen2_vl;
Maker make_qwen3;
Maker make_qwen3_vl;
Maker make_stablelm;
Maker make_starcoder2;

namespace {

constexpr struct {
  const char* model_type;
  Maker* make;
} architectures[] = {
    {"cohere", make_cohere},
    {"cohere2", make_cohere2},
    {"gemma", make_gemma},
    {"gemma2", make_gemma2},
    {"gemma3", make_gemma3},
    {"gemma3_text", make_gemma3_text},
    {"glm", make_glm},
    {"glm4", make_glm4},
    {"granite", make_granite},
    {"iquestcoder", make_llama},
    {"llama", make_llama},
    {"mistral", make_llama},
    {"olmo2", make_olmo2},
    {"olmo3", make_olmo3},
    {"phi3", make_phi3},
    {"qwen2", make_qwen2},
    {"qwen2_5_vl", make_qwen2_vl},
    {"qwen2_vl", make_qwen2_vl},
    {"qwen3", make_qwen3},
    {"qwen3_vl", make_qwen3_vl},
    {"smollm3", make_llama},
    {"stablelm", make_stablelm},
    {"starcoder2", make_starcoder2},
    {"xverse", make_llama},
};

} // namespace

std::unique_ptr<Model> make_model(const Config& config, Weights& weights) {
  auto type = config.text("model_type");
  auto* found =
      std::find_if(std::begin(architectures), std::end(architectures), [&](auto& a) { return a.model_type == type; });
  if (found == std::end(architectures)) {
    std::string known;
    for (auto& a : architectures) {
      known += (known.empty() ? "" : ", ") + std::string(a.model_type);
    }
    fail(Kind::invalid, "[make_model] 'model_type' must be one of {}; got '{}'", known, type);
  }
  auto model = found->make(config, weights);
  weights.finish();
  return model;
}

} // namespace parallm
