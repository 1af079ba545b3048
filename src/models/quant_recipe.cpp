#include "models/quant_recipe.h"

#include "base/error.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

namespace parallm {

namespace {

constexpr struct {
  const char* name;
  int low_bits;
  int high_bits;
} recipes[] = {{"mixed_2_6", 2, 6}, {"mixed_3_4", 3, 4}, {"mixed_3_6", 3, 6}, {"mixed_4_6", 4, 6}};

// Layers whose names end so have affine quantization of these bits in groups of 64, or (0) none: mlx-lm keeps them more
// precise, or holds them in a module that it can't quantize. The quant_predicate of mlx_lm/models/<model_type>.py, or
// its routers that are no nn.Linear.
constexpr struct {
  const char* model_type;
  const char* ending;
  int bits;
} own_rules[] = {
    {"Klear", "mlp.gate", 8},
    {"afmoe", "router.gate", 8},
    {"bailing_hybrid", "mlp.gate.gate_proj", 8},
    {"bailing_hybrid", "attention.embed_q", 0},
    {"bailing_hybrid", "attention.unembed_out", 0},
    {"bailing_moe", "mlp.gate.gate_proj", 8},
    {"bailing_moe_linear", "mlp.gate.gate_proj", 8},
    {"bailing_moe_v3", "model.word_embeddings", 0},
    {"bailing_moe_v3", "lm_head", 0},
    {"bailing_moe_v3", "mlp.gate", 0},
    {"bailing_moe_v3", "attention.q_a_proj", 0},
    {"bailing_moe_v3", "attention.q_b_proj", 0},
    {"bailing_moe_v3", "attention.kv_a_proj_with_mqa", 0},
    {"bailing_moe_v3", "attention.embed_q", 0},
    {"bailing_moe_v3", "attention.unembed_out", 0},
    {"bailing_moe_v3", "attention.b_proj", 0},
    {"deepseek", "mlp.gate", 0},
    {"deepseek_v2", "mlp.gate", 0},
    {"deepseek_v3", "mlp.gate", 0},
    {"deepseek_v32", "mlp.gate", 0},
    {"deepseek_v41", "mlp.gate", 0},
    {"deepseek_v41_text", "mlp.gate", 0},
    {"dots1", "mlp.gate", 0},
    {"exaone_moe", "mlp.gate", 0},
    {"gemma4", "router.proj", 8},
    {"gemma4_text", "router.proj", 8},
    {"gemma4_unified", "router.proj", 8},
    {"glm4_moe", "mlp.gate", 0},
    {"glm4_moe_lite", "mlp.gate", 0},
    {"glm_moe_dsa", "mlp.gate", 0},
    {"gpt_oss", "router", 8},
    {"granite", "self_attn.o_proj", 8},
    {"granite", "mlp.down_proj", 8},
    {"granite", "lm_head", 8},
    {"granitemoe", "block_sparse_moe.router.layer", 8},
    {"granitemoe", "self_attn.o_proj", 8},
    {"granitemoe", "mlp.down_proj", 8},
    {"granitemoe", "lm_head", 8},
    {"granitemoehybrid", "router.layer", 8},
    {"jamba", "router", 8},
    {"joyai_llm_flash", "mlp.gate", 0},
    {"kimi_k2", "mlp.gate", 0},
    {"kimi_k25", "mlp.gate", 0},
    {"kimi_k3", "mlp.gate", 8},
    {"kimi_linear", "mlp.gate", 8},
    {"kimi_vl", "mlp.gate", 0},
    {"laguna", "mlp.gate.proj", 8},
    {"lfm2_moe", "feed_forward.gate", 8},
    {"longcat_flash", "classifier", 8},
    {"longcat_flash_ngram", "classifier", 8},
    {"mellum", "mlp.gate", 8},
    {"mimo_v2_flash", "mlp.gate", 0},
    {"minimax", "block_sparse_moe.gate", 8},
    {"minimax_m2", "block_sparse_moe.gate", 8},
    {"minimax_m3_vl", "block_sparse_moe.gate", 8},
    {"nemotron_h", "mixer.gate", 0},
    {"qwen3_5_moe", "mlp.gate", 8},
    {"qwen3_5_moe", "shared_expert_gate", 8},
    {"qwen3_moe", "mlp.gate", 8},
    {"qwen3_next", "mlp.gate", 8},
    {"qwen3_next", "shared_expert_gate", 8},
    {"qwen3_vl_moe", "mlp.gate", 8},
    {"rwkv7", "embeddings", 8},
    {"rwkv7", "lora.2", 8},
    {"solar_open", "mlp.gate", 0},
    {"spark2_5", "self_attn.g_proj", 0},
    {"step3p5", "mlp.gate.gate", 8},
};

// The cast_predicate of the architectures that have one, by the parts of names that it keeps; no model_type: of all but
// those below.
constexpr struct {
  const char* model_type;
  const char* part;
} uncast[] = {
    {"", "e_score_correction_bias"},
    {"", "expert_bias"},
    {"deepseek_v41", "attn_hc."},
    {"deepseek_v41", "ffn_hc."},
    {"deepseek_v41", "sinks"},
    {"deepseek_v41", "compressor."},
    {"deepseek_v41_text", "attn_hc."},
    {"deepseek_v41_text", "ffn_hc."},
    {"deepseek_v41_text", "sinks"},
    {"deepseek_v41_text", "compressor."},
    {"kimi_k3", ".A_log"},
    {"kimi_k3", ".dt_bias"},
    {"kimi_linear", ".A_log"},
    {"kimi_linear", ".dt_bias"},
    {"muse_spark", "_alpha"},
    {"muse_spark", "_beta"},
    {"nemotron_h", ".A_log"},
    {"prism_hadamard_qwen35", ".A_log"},
    {"qwen3_5", ".A_log"},
    {"qwen3_5_moe", ".A_log"},
    {"step3p5", "router_bias"},
};

constexpr std::string_view casts_routers[] = {"bailing_moe_v3", "dots1", "muse_spark"};

std::vector<std::string_view> parts_of(std::string_view name) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at <= name.size();) {
    const size_t dot = std::min(name.find('.', at), name.size());
    parts.push_back(name.substr(at, dot - at));
    at = dot + 1;
  }
  return parts;
}

std::optional<int> number(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size() ? std::optional(value) : std::nullopt;
}

bool has(const std::string& name, const char* part) {
  return name.find(part) != std::string::npos;
}

/** The first number in a name; -1: none. */
int layer_index(const std::string& name) {
  for (auto part : parts_of(name)) {
    if (auto index = number(part)) {
      return *index;
    }
  }
  return -1;
}

} // namespace

std::vector<std::string> quant_recipes() {
  std::vector<std::string> names;
  for (const auto& recipe : recipes) {
    names.emplace_back(recipe.name);
  }
  return names;
}

QuantRules::QuantRules(
    Quantization base,
    const std::string& recipe,
    const std::string& model_type,
    const std::vector<std::string>& layers)
    : base_(std::move(base)), model_type_(model_type) {
  for (const auto& layer : layers) {
    layers_ = std::max(layers_, layer_index(layer) + 1);
    if (layer.ends_with("attention.f_proj")) {
      delta_layers_.insert(layer_index(layer));
    }
  }
  if (recipe.empty()) {
    return;
  }
  const auto* known = std::find_if(std::begin(recipes), std::end(recipes), [&](auto& r) { return recipe == r.name; });
  if (known == std::end(recipes)) {
    fail(Kind::invalid, "[convert] the recipe must be one of {}; got '{}'", fmt::join(quant_recipes(), ", "), recipe);
  }
  if (base_.mode != "affine") {
    fail(Kind::invalid, "[convert] the recipe {} is for the mode affine; got {}", recipe, base_.mode);
  }
  low_bits_ = known->low_bits;
  high_bits_ = known->high_bits;
  const auto down = std::find_if(layers.begin(), layers.end(), [](auto& name) { return has(name, "down_proj"); });
  if (down == layers.end()) {
    fail(Kind::invalid, "[convert] the recipe {} needs layers named down_proj, and the model has none", recipe);
  }
  const auto parts = parts_of(*down);
  index_at_ =
      std::find_if(parts.begin(), parts.end(), [](auto part) { return number(part).has_value(); }) - parts.begin();
}

std::optional<Quantization> QuantRules::mixed(const std::string& layer) const {
  const auto parts = parts_of(layer);
  const int index = index_at_ < parts.size() ? number(parts[index_at_]).value_or(0) : 0;
  // The first and the last eighth, and every third between.
  const int eighth = layers_ / 8;
  const bool outer = index < eighth || index >= 7 * layers_ / 8 || (index - eighth) % 3 == 2;
  const bool value = has(layer, "v_proj") || has(layer, "v_a_proj") || has(layer, "v_b_proj");
  const bool more = has(layer, "lm_head") || (outer && (value || has(layer, "down_proj")));
  return Quantization{base_.group_size, more ? high_bits_ : low_bits_, "affine"};
}

std::optional<Quantization> QuantRules::operator()(const std::string& layer, int inputs) const {
  if (inputs % base_.group_size != 0) {
    return {};
  }
  if (low_bits_ > 0) {
    return mixed(layer);
  }
  const bool gated = layer.ends_with("attention.q_proj") || layer.ends_with("attention.g_proj");
  if (model_type_ == "bailing_moe_v3" && gated && !delta_layers_.contains(layer_index(layer))) {
    return {};
  }
  if (model_type_ == "muse_spark") { // its experts, but not those of the first and the last layer
    const int index = layer_index(layer);
    const bool quantized = has(layer, ".mlp.experts.") && index > 0 && index < layers_ - 1;
    return quantized ? std::optional(base_) : std::nullopt;
  }
  for (const auto& rule : own_rules) {
    if (model_type_ == rule.model_type && layer.ends_with(rule.ending)) {
      constexpr int group_size = 64;
      if (rule.bits > 0 && inputs % group_size != 0) {
        fail(Kind::invalid, "[convert] {} has {} inputs, which groups of {} don't divide", layer, inputs, group_size);
      }
      return rule.bits > 0 ? std::optional(Quantization{group_size, rule.bits, "affine"}) : std::nullopt;
    }
  }
  return base_;
}

bool may_cast(const std::string& model_type, const std::string& tensor) {
  const bool is_of_all = std::ranges::find(casts_routers, model_type) == std::end(casts_routers);
  return std::none_of(std::begin(uncast), std::end(uncast), [&](auto& kept) {
    return (*kept.model_type == 0 ? is_of_all : model_type == kept.model_type) && has(tensor, kept.part);
  });
}

} // namespace parallm
