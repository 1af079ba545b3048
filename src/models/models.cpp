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
Maker make_afm7;
Maker make_afmoe;
Maker make_apertus;
Maker make_baichuan_m1;
Maker make_bailing_hybrid;
Maker make_bailing_moe;
Maker make_bailing_moe_linear;
Maker make_bailing_moe_v3;
Maker make_bitnet;
Maker make_cohere;
Maker make_cohere2;
Maker make_dbrx;
Maker make_deepseek;
Maker make_deepseek_v2;
Maker make_deepseek_v3;
Maker make_deepseek_v32;
Maker make_deepseek_v41;
Maker make_dots1;
Maker make_ernie4_5;
Maker make_ernie4_5_moe;
Maker make_exaone;
Maker make_exaone4;
Maker make_exaone_moe;
Maker make_falcon_h1;
Maker make_gear;
Maker make_gemma;
Maker make_gemma2;
Maker make_gemma3;
Maker make_gemma3_text;
Maker make_gemma3n;
Maker make_gemma4;
Maker make_gemma4_text;
Maker make_glm;
Maker make_glm4;
Maker make_glm4_moe;
Maker make_glm4_moe_lite;
Maker make_glm_moe_dsa;
Maker make_gpt2;
Maker make_gpt_bigcode;
Maker make_gpt_neox;
Maker make_gpt_oss;
Maker make_gptj;
Maker make_granite;
Maker make_granitemoe;
Maker make_granitemoehybrid;
Maker make_helium;
Maker make_hunyuan;
Maker make_hunyuan_v1_dense;
Maker make_internlm2;
Maker make_internlm3;
Maker make_iquestloopcoder;
Maker make_jamba;
Maker make_kimi_k3;
Maker make_kimi_linear;
Maker make_kimi_vl;
Maker make_klear;
Maker make_laguna;
Maker make_lfm2;
Maker make_lfm2_vl;
Maker make_lille_130m;
Maker make_llama;
Maker make_llama4;
Maker make_llama4_text;
Maker make_longcat_flash;
Maker make_longcat_flash_ngram;
Maker make_mamba;
Maker make_mamba2;
Maker make_mellum;
Maker make_mimo;
Maker make_mimo_v2_flash;
Maker make_minicpm;
Maker make_minicpm3;
Maker make_minimax;
Maker make_minimax_m3_vl;
Maker make_ministral3;
Maker make_mistral3;
Maker make_mistral4;
Maker make_mixtral;
Maker make_muse_glimmer;
Maker make_muse_spark;
Maker make_nanbeige;
Maker make_nanochat;
Maker make_nemotron;
Maker make_nemotron_h;
Maker make_nemotron_nas;
Maker make_olmo;
Maker make_olmo2;
Maker make_olmo3;
Maker make_olmo_hybrid;
Maker make_olmoe;
Maker make_openelm;
Maker make_phi;
Maker make_phi3;
Maker make_phi3small;
Maker make_phimoe;
Maker make_phixtral;
Maker make_plamo;
Maker make_plamo2;
Maker make_plamo3;
Maker make_prism_hadamard_qwen35;
Maker make_qwen;
Maker make_qwen2;
Maker make_qwen2_moe;
Maker make_qwen2_vl;
Maker make_qwen3;
Maker make_qwen3_5;
Maker make_qwen3_moe;
Maker make_qwen3_next;
Maker make_qwen3_vl;
Maker make_qwen3_vl_moe;
Maker make_recurrent_gemma;
Maker make_rwkv7;
Maker make_spark2_5;
Maker make_stablelm;
Maker make_starcoder2;
Maker make_step3p5;
Maker make_talkie;
Maker make_youtu_llm;

namespace {

constexpr struct {
  const char* model_type;
  Maker* make;
} architectures[] = {
    {"Klear", make_klear},
    {"afm7", make_afm7},
    {"afmoe", make_afmoe},
    {"apertus", make_apertus},
    {"baichuan_m1", make_baichuan_m1},
    {"bailing_hybrid", make_bailing_hybrid},
    {"bailing_moe", make_bailing_moe},
    {"bailing_moe_linear", make_bailing_moe_linear},
    {"bailing_moe_v3", make_bailing_moe_v3},
    {"bitnet", make_bitnet},
    {"cohere", make_cohere},
    {"cohere2", make_cohere2},
    {"dbrx", make_dbrx},
    {"deepseek", make_deepseek},
    {"deepseek_v2", make_deepseek_v2},
    {"deepseek_v3", make_deepseek_v3},
    {"deepseek_v32", make_deepseek_v32},
    {"deepseek_v41", make_deepseek_v41},
    {"deepseek_v41_text", make_deepseek_v41},
    {"dots1", make_dots1},
    {"ernie4_5", make_ernie4_5},
    {"ernie4_5_moe", make_ernie4_5_moe},
    {"exaone", make_exaone},
    {"exaone4", make_exaone4},
    {"exaone_moe", make_exaone_moe},
    {"falcon_h1", make_falcon_h1},
    {"falcon_mamba", make_mamba},
    {"gear", make_gear},
    {"gemma", make_gemma},
    {"gemma2", make_gemma2},
    {"gemma3", make_gemma3},
    {"gemma3_text", make_gemma3_text},
    {"gemma3n", make_gemma3n},
    {"gemma4", make_gemma4},
    {"gemma4_text", make_gemma4_text},
    {"gemma4_unified", make_gemma4},
    {"glm", make_glm},
    {"glm4", make_glm4},
    {"glm4_moe", make_glm4_moe},
    {"glm4_moe_lite", make_glm4_moe_lite},
    {"glm_moe_dsa", make_glm_moe_dsa},
    {"gpt2", make_gpt2},
    {"gpt_bigcode", make_gpt_bigcode},
    {"gpt_neox", make_gpt_neox},
    {"gpt_oss", make_gpt_oss},
    {"gptj", make_gptj},
    {"granite", make_granite},
    {"granitemoe", make_granitemoe},
    {"granitemoehybrid", make_granitemoehybrid},
    {"helium", make_helium},
    {"hunyuan", make_hunyuan},
    {"hunyuan_v1_dense", make_hunyuan_v1_dense},
    {"internlm2", make_internlm2},
    {"internlm3", make_internlm3},
    {"iquestcoder", make_llama},
    {"iquestloopcoder", make_iquestloopcoder},
    {"jamba", make_jamba},
    {"joyai_llm_flash", make_deepseek_v3},
    {"kimi_k2", make_deepseek_v3},
    {"kimi_k25", make_kimi_vl},
    {"kimi_k3", make_kimi_k3},
    {"kimi_linear", make_kimi_linear},
    {"kimi_vl", make_kimi_vl},
    {"laguna", make_laguna},
    {"lfm2", make_lfm2},
    {"lfm2-vl", make_lfm2_vl},
    {"lfm2_moe", make_lfm2},
    {"lfm2_vl", make_lfm2_vl},
    {"lille-130m", make_lille_130m},
    {"llama", make_llama},
    {"llama4", make_llama4},
    {"llama4_text", make_llama4_text},
    {"llava", make_mistral3},
    {"longcat_flash", make_longcat_flash},
    {"longcat_flash_ngram", make_longcat_flash_ngram},
    {"mamba", make_mamba},
    {"mamba2", make_mamba2},
    {"mellum", make_mellum},
    {"mimo", make_mimo},
    {"mimo_v2_flash", make_mimo_v2_flash},
    {"minicpm", make_minicpm},
    {"minicpm3", make_minicpm3},
    {"minimax", make_minimax},
    {"minimax_m2", make_minimax},
    {"minimax_m3_vl", make_minimax_m3_vl},
    {"ministral3", make_ministral3},
    {"mistral", make_llama},
    {"mistral3", make_mistral3},
    {"mistral4", make_mistral4},
    {"mixtral", make_mixtral},
    {"muse_glimmer", make_muse_glimmer},
    {"muse_spark", make_muse_spark},
    {"nanbeige", make_nanbeige},
    {"nanochat", make_nanochat},
    {"nemotron", make_nemotron},
    {"nemotron-nas", make_nemotron_nas},
    {"nemotron_h", make_nemotron_h},
    {"olmo", make_olmo},
    {"olmo2", make_olmo2},
    {"olmo3", make_olmo3},
    {"olmo_hybrid", make_olmo_hybrid},
    {"olmoe", make_olmoe},
    {"openelm", make_openelm},
    {"phi", make_phi},
    {"phi-msft", make_phixtral},
    {"phi3", make_phi3},
    {"phi3small", make_phi3small},
    {"phimoe", make_phimoe},
    {"phixtral", make_phixtral},
    {"pixtral", make_mistral3},
    {"plamo", make_plamo},
    {"plamo2", make_plamo2},
    {"plamo3", make_plamo3},
    {"prism_hadamard_qwen35", make_prism_hadamard_qwen35},
    {"qwen", make_qwen},
    {"qwen2", make_qwen2},
    {"qwen2_5_vl", make_qwen2_vl},
    {"qwen2_moe", make_qwen2_moe},
    {"qwen2_vl", make_qwen2_vl},
    {"qwen3", make_qwen3},
    {"qwen3_5", make_qwen3_5},
    {"qwen3_5_moe", make_qwen3_5},
    {"qwen3_moe", make_qwen3_moe},
    {"qwen3_next", make_qwen3_next},
    {"qwen3_vl", make_qwen3_vl},
    {"qwen3_vl_moe", make_qwen3_vl_moe},
    {"recurrent_gemma", make_recurrent_gemma},
    {"rwkv7", make_rwkv7},
    {"seed_oss", make_llama},
    {"smollm3", make_llama},
    {"solar_open", make_glm4_moe},
    {"spark2_5", make_spark2_5},
    {"stablelm", make_stablelm},
    {"starcoder2", make_starcoder2},
    {"step3p5", make_step3p5},
    {"talkie", make_talkie},
    {"telechat3", make_llama},
    {"xverse", make_llama},
    {"youtu_llm", make_youtu_llm},
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
