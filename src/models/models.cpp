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
Maker make_deepseek;
Maker make_deepseek_v2;
Maker make_deepseek_v3;
Maker make_dots1;
Maker make_exaone_moe;
Maker make_gemma3;
Maker make_gemma3_text;
Maker make_glm4_moe;
Maker make_glm4_moe_lite;
Maker make_gpt_oss;
Maker make_kimi_vl;
Maker make_llama;
Maker make_llama4;
Maker make_llama4_text;
Maker make_mixtral;
Maker make_olmoe;
Maker make_qwen2_moe;
Maker make_qwen3_moe;
Maker make_qwen3_vl_moe;

namespace {

constexpr struct {
  const char* model_type;
  Maker* make;
} architectures[] = {
    {"deepseek", make_deepseek},
    {"deepseek_v2", make_deepseek_v2},
    {"deepseek_v3", make_deepseek_v3},
    {"dots1", make_dots1},
    {"exaone_moe", make_exaone_moe},
    {"gemma3", make_gemma3},
    {"gemma3_text", make_gemma3_text},
    {"glm4_moe", make_glm4_moe},
    {"glm4_moe_lite", make_glm4_moe_lite},
    {"gpt_oss", make_gpt_oss},
    {"joyai_llm_flash", make_deepseek_v3},
    {"kimi_k2", make_deepseek_v3},
    {"kimi_k25", make_kimi_vl},
    {"kimi_vl", make_kimi_vl},
    {"llama", make_llama},
    {"llama4", make_llama4},
    {"llama4_text", make_llama4_text},
    {"mistral", make_llama},
    {"mixtral", make_mixtral},
    {"olmoe", make_olmoe},
    {"qwen2_moe", make_qwen2_moe},
    {"qwen3_moe", make_qwen3_moe},
    {"qwen3_vl_moe", make_qwen3_vl_moe},
    {"solar_open", make_glm4_moe},
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
