#include "models/gguf_names.h"

#include "base/error.h"

#include <algorithm>

namespace parallm {
namespace json = boost::json;

namespace {

constexpr GgufName top_names[] = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
    {"token_embd_norm", "model.embedding_norm"},
};

constexpr GgufName layer_names[] = {
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_qkv", "self_attn.qkv_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},
    {"attn_norm", "input_layernorm"},
    {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"ffn_gate_inp", "mlp.gate"},
    {"ffn_gate_exps", "mlp.switch_mlp.gate_proj"},
    {"ffn_up_exps", "mlp.switch_mlp.up_proj"},
    {"ffn_down_exps", "mlp.switch_mlp.down_proj"},
    {"ffn_gate_inp_shexp", "mlp.shared_expert_gate"},
    {"ffn_gate_shexp", "mlp.shared_expert.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_expert.up_proj"},
    {"ffn_down_shexp", "mlp.shared_expert.down_proj"},
};

constexpr GgufName mixtral_names[] = {
    {"ffn_gate_inp", "block_sparse_moe.gate"},
    {"ffn_gate_exps", "block_sparse_moe.switch_mlp.gate_proj"},
    {"ffn_up_exps", "block_sparse_moe.switch_mlp.up_proj"},
    {"ffn_down_exps", "block_sparse_moe.switch_mlp.down_proj"},
};
constexpr GgufName four_norms[] = {
    {"ffn_norm", "pre_feedforward_layernorm"},
    {"post_attention_norm", "post_attention_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
};
constexpr GgufName norms_after[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"post_ffw_norm", "post_feedforward_layernorm"},
};
constexpr GgufName phi3_names[] = {{"ffn_up", "mlp.gate_up_proj"}};
constexpr GgufName starcoder2_names[] = {{"ffn_up", "mlp.c_fc"}, {"ffn_down", "mlp.c_proj"}};
constexpr GgufName glm4_names[] = {
    {"ffn_up", "mlp.gate_up_proj"},
    {"post_attention_norm", "post_self_attn_layernorm"},
    {"post_ffw_norm", "post_mlp_layernorm"},
};
constexpr GgufName gpt_oss_names[] = {
    {"post_attention_norm", "post_attention_layernorm"},
    {"attn_sinks", "self_attn.sinks", true},
    {"ffn_gate_inp", "mlp.router"},
    {"ffn_gate_exps", "mlp.experts.gate_proj"},
    {"ffn_up_exps", "mlp.experts.up_proj"},
    {"ffn_down_exps", "mlp.experts.down_proj"},
};
constexpr GgufName lfm2_names[] = {
    {"attn_norm", "operator_norm"},
    {"ffn_norm", "ffn_norm"},
    {"attn_output", "self_attn.out_proj"},
    {"attn_q_norm", "self_attn.q_layernorm"},
    {"attn_k_norm", "self_attn.k_layernorm"},
    {"ffn_gate", "feed_forward.w1"},
    {"ffn_up", "feed_forward.w3"},
    {"ffn_down", "feed_forward.w2"},
    {"shortconv.conv", "conv.conv"},
    {"shortconv.in_proj", "conv.in_proj"},
    {"shortconv.out_proj", "conv.out_proj"},
};

constexpr GgufName deepseek2_names[] = {
    {"attn_q_a", "self_attn.q_a_proj"},
    {"attn_q_a_norm", "self_attn.q_a_layernorm"},
    {"attn_q_b", "self_attn.q_b_proj"},
    {"attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"},
    {"attn_kv_a_norm", "self_attn.kv_a_layernorm"},
    {"attn_kv_b", "self_attn.kv_b_proj"},
    {"attn_k_b", "self_attn.embed_q"},
    {"attn_v_b", "self_attn.unembed_out"},
    {"exp_probs_b", "mlp.gate.e_score_correction_bias", true},
    {"ffn_gate_shexp", "mlp.shared_experts.gate_proj"},
    {"ffn_up_shexp", "mlp.shared_experts.up_proj"},
    {"ffn_down_shexp", "mlp.shared_experts.down_proj"},
};

constexpr GgufField mixtral_fields[] = {
    {"num_local_experts", "expert_count"},
    {"num_experts_per_tok", "expert_used_count"}};
constexpr GgufField gpt_oss_fields[] = {
    {"num_local_experts", "expert_count"},
    {"num_experts_per_tok", "expert_used_count"},
    {"intermediate_size", "expert_feed_forward_length"},
};
constexpr GgufField qwen_moe_fields[] = {
    {"num_experts", "expert_count"},
    {"num_experts_per_tok", "expert_used_count"},
    {"moe_intermediate_size", "expert_feed_forward_length"},
    {"shared_expert_intermediate_size", "expert_shared_feed_forward_length"},
};
constexpr GgufField softcap_fields[] = {
    {"attn_logit_softcapping", "attn_logit_softcapping"},
    {"final_logit_softcapping", "final_logit_softcapping"}};
constexpr GgufField gemma3_fields[] = {
    {"rope_local_base_freq", "rope.freq_base_swa"},
    {"final_logit_softcapping", "final_logit_softcapping"}};
constexpr GgufField starcoder2_fields[] = {{"norm_epsilon", "attention.layer_norm_epsilon"}};
constexpr GgufField stablelm_fields[] = {
    {"layer_norm_eps", "attention.layer_norm_epsilon"},
    {"use_parallel_residual", "use_parallel_residual"}};
constexpr GgufField cohere2_fields[] = {
    {"layer_norm_eps", "attention.layer_norm_epsilon"},
    {"logit_scale", "logit_scale"}};
constexpr GgufField granite_fields[] = {
    {"attention_multiplier", "attention.scale"},
    {"embedding_multiplier", "embedding_scale"},
    {"residual_multiplier", "residual_scale"},
    {"logits_scaling", "logit_scale"},
};
constexpr GgufField deepseek2_fields[] = {
    {"q_lora_rank", "attention.q_lora_rank"},
    {"kv_lora_rank", "attention.kv_lora_rank"},
    {"qk_rope_head_dim", "rope.dimension_count"},
    {"n_routed_experts", "expert_count"},
    {"n_shared_experts", "expert_shared_count"},
    {"num_experts_per_tok", "expert_used_count"},
    {"moe_intermediate_size", "expert_feed_forward_length"},
    {"first_k_dense_replace", "leading_dense_block_count"},
    {"routed_scaling_factor", "expert_weights_scale"},
    {"norm_topk_prob", "expert_weights_norm"},
    {"n_group", "expert_group_count"},
    {"topk_group", "expert_group_used_count"},
};
constexpr GgufField lfm2_fields[] = {
    {"norm_eps", "attention.layer_norm_rms_epsilon"},
    {"conv_L_cache", "shortconv.l_cache"},
    {"block_dim", "embedding_length"},
    {"block_ff_dim", "feed_forward_length"},
};

bool has_experts(const GgufMetadata& metadata) {
  return metadata.integer(gguf_key(metadata, "expert_count"), 0) > 0;
}

/** expert_gating_func 2 (gguf-py's ExpertGatingFuncType): DeepSeek V3; V2's files name none, or softmax. */
bool has_sigmoid_experts(const GgufMetadata& metadata) {
  return has_experts(metadata) && metadata.integer(gguf_key(metadata, "expert_gating_func"), 1) == 2;
}

bool has_softmax_experts(const GgufMetadata& metadata) {
  return has_experts(metadata) && !has_sigmoid_experts(metadata);
}

bool has_bias(const GgufContents& contents, const char* stem) {
  return find_gguf_tensor(contents, fmt::format("blk.0.{}.bias", stem)) != nullptr;
}

/** layer_types, where every `pattern`th layer sees all and the others slide. A file may name the pattern, or say of
 * each layer whether it slides. */
void set_layer_types(const GgufContents& contents, json::object& config, int pattern) {
  auto& metadata = contents.metadata;
  int layers = metadata.integer(gguf_key(metadata, "block_count"));
  auto slides = metadata.integers(gguf_key(metadata, "attention.sliding_window_pattern"));
  bool list = int(slides.size()) == layers;
  if (slides.size() == 1 && slides[0] > 0) {
    pattern = int(slides[0]);
  }
  config["sliding_window_pattern"] = pattern;
  json::array types;
  for (int i = 0; i < layers; ++i) {
    bool sliding = list ? slides[i] != 0 : (i + 1) % pattern != 0;
    types.emplace_back(sliding ? "sliding_attention" : "full_attention");
  }
  config["layer_types"] = std::move(types);
}

/** The score's scale, which no key holds: by head, or in the 27B models, told by their layers, by hidden size
 * (llama.cpp's gemma2.cpp and gemma3.cpp). */
void set_query_scale(const GgufContents& contents, json::object& config) {
  auto& metadata = contents.metadata;
  int layers = metadata.integer(gguf_key(metadata, "block_count"));
  bool by_hidden = layers == 46 || layers == 62;
  config["query_pre_attn_scalar"] = by_hidden ? metadata.integer(gguf_key(metadata, "embedding_length")) /
          metadata.integer(gguf_key(metadata, "attention.head_count"))
                                              : metadata.integer(gguf_key(metadata, "attention.key_length"), 256);
}

void finish_gemma2(const GgufContents& contents, json::object& config) {
  set_query_scale(contents, config);
  set_layer_types(contents, config, 2);
}

void finish_gemma3(const GgufContents& contents, json::object& config) {
  set_query_scale(contents, config);
  if (config.contains("sliding_window")) {
    set_layer_types(contents, config, 6);
  } else {
    config["sliding_window_pattern"] = 1;
  }
}

void finish_cohere2(const GgufContents& contents, json::object& config) {
  set_layer_types(contents, config, 4);
}

void finish_gpt_oss(const GgufContents& contents, json::object& config) {
  set_layer_types(contents, config, 2);
  if (auto* scaling = config.if_contains("rope_scaling")) {
    scaling->as_object()["truncate"] = false; // gpt-oss' config.json; no key holds it
  }
}

/** Olmo 3 is architecture olmo2 with a sliding window. */
void finish_olmo2(const GgufContents& contents, json::object& config) {
  if (config.contains("sliding_window")) {
    config["model_type"] = "olmo3";
    set_layer_types(contents, config, 4);
  }
}

void finish_granite(const GgufContents& contents, json::object& config) {
  config["attention_bias"] = has_bias(contents, "attn_q");
  config["mlp_bias"] = has_bias(contents, "ffn_up");
}

void finish_glm4(const GgufContents& contents, json::object& config) {
  config["attention_bias"] = has_bias(contents, "attn_q");
}

void finish_stablelm(const GgufContents& contents, json::object& config) {
  config["use_qkv_bias"] = has_bias(contents, "attn_q");
  config["qk_layernorm"] = find_gguf_tensor(contents, "blk.0.attn_q_norm.weight") != nullptr;
}

/** Experts' widths, where an older file names none. */
void finish_qwen_moe(const GgufContents& contents, json::object& config) {
  auto set = [&](const char* field, const char* name) {
    auto* tensor = find_gguf_tensor(contents, name);
    if (!config.contains(field) && tensor && tensor->shape.size() >= 2) {
      config[field] = tensor->shape[tensor->shape.size() - 2];
    }
  };
  set("moe_intermediate_size", "blk.0.ffn_up_exps.weight");
  set("shared_expert_intermediate_size", "blk.0.ffn_up_shexp.weight");
}

/** Layers without KV heads are convolutions. */
void finish_lfm2(const GgufContents& contents, json::object& config) {
  auto& metadata = contents.metadata;
  int layers = metadata.integer(gguf_key(metadata, "block_count"));
  auto heads = metadata.integers(gguf_key(metadata, "attention.head_count_kv"));
  if (heads.empty() || (heads.size() != 1 && int(heads.size()) != layers)) {
    fail(Kind::invalid, "[gguf] 'lfm2.attention.head_count_kv' must be a list of {} integers", layers);
  }
  json::array types;
  for (int i = 0; i < layers; ++i) {
    types.emplace_back(heads[heads.size() == 1 ? 0 : i] == 0 ? "conv" : "full_attention");
  }
  config["layer_types"] = std::move(types);
  config["num_key_value_heads"] = *std::max_element(heads.begin(), heads.end());
}

/** Heads' sizes as they are before the keys and values are absorbed: newer files say so by keys of their own. */
void finish_deepseek2(const GgufContents& contents, json::object& config) {
  auto& metadata = contents.metadata;
  auto size = [&](const char* key, const char* older) {
    auto name = gguf_key(metadata, key);
    return metadata.integer(metadata.has(name) ? name : gguf_key(metadata, older));
  };
  int rotated = metadata.integer(gguf_key(metadata, "rope.dimension_count"));
  config["qk_nope_head_dim"] = size("attention.key_length_mla", "attention.key_length") - rotated;
  config["v_head_dim"] = size("attention.value_length_mla", "attention.value_length");
  boost::json::value heads = config["num_attention_heads"]; // a copy: the next insertion may move it
  config["num_key_value_heads"] = std::move(heads);
  config.erase("head_dim");
  config.erase("partial_rotary_factor");
  if (!config.contains("q_lora_rank")) {
    config["q_lora_rank"] = nullptr; // V2 Lite
  }
  if (config["model_type"] == "deepseek_v2") {
    bool groups = metadata.integer(gguf_key(metadata, "expert_group_count"), 1) > 1;
    config["topk_method"] = groups ? "group_limited_greedy" : "greedy";
  }
  // The converter writes a tenth of mscale_all_dim, and the released models' mscale is the same.
  auto log = gguf_key(metadata, "rope.scaling.yarn_log_multiplier");
  auto* scaling = config.if_contains("rope_scaling");
  if (scaling && metadata.has(log)) {
    auto& options = scaling->as_object();
    options["mscale"] = options["mscale_all_dim"] = metadata.number(log) * 10;
  }
}

const GgufArchitecture architectures[] = {
    {.architecture = "llama", .model_type = "llama", .paired_rope = true},
    {.architecture = "llama",
     .model_type = "mixtral",
     .applies = has_experts,
     .paired_rope = true,
     .fields = mixtral_fields,
     .names = mixtral_names},
    {.architecture = "qwen2", .model_type = "qwen2"},
    {.architecture = "qwen3", .model_type = "qwen3"},
    {.architecture = "qwen2moe",
     .model_type = "qwen2_moe",
     .applies = has_experts,
     .fields = qwen_moe_fields,
     .constants = R"({"norm_topk_prob": false, "decoder_sparse_step": 1, "mlp_only_layers": []})",
     .finish = finish_qwen_moe},
    {.architecture = "qwen3moe",
     .model_type = "qwen3_moe",
     .applies = has_experts,
     .fields = qwen_moe_fields,
     .constants = R"({"norm_topk_prob": true, "decoder_sparse_step": 1, "mlp_only_layers": []})",
     .finish = finish_qwen_moe},
    {.architecture = "gemma",
     .model_type = "gemma",
     .norms_plus_one = true,
     .wide_range = true,
     .constants = R"({"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"})"},
    {.architecture = "gemma2",
     .model_type = "gemma2",
     .norms_plus_one = true,
     .wide_range = true,
     .fields = softcap_fields,
     .names = four_norms,
     .constants = R"({"hidden_activation": "gelu_pytorch_tanh", "sliding_window": 4096,
                      "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})",
     .finish = finish_gemma2},
    {.architecture = "gemma3",
     .model_type = "gemma3_text",
     .norms_plus_one = true,
     .wide_range = true,
     .fields = gemma3_fields,
     .names = four_norms,
     .constants = R"({"hidden_activation": "gelu_pytorch_tanh", "rope_theta": 1000000.0,
                      "rope_local_base_freq": 10000.0})",
     .finish = finish_gemma3},
    {.architecture = "phi3", .model_type = "phi3", .names = phi3_names},
    {.architecture = "starcoder2",
     .model_type = "starcoder2",
     .fields = starcoder2_fields,
     .names = starcoder2_names,
     .constants = R"({"use_bias": true, "hidden_act": "gelu_pytorch_tanh"})"},
    {.architecture = "stablelm",
     .model_type = "stablelm",
     .fields = stablelm_fields,
     .constants = R"({"rope_theta": 10000.0, "use_parallel_residual": false})",
     .finish = finish_stablelm},
    {.architecture = "cohere2",
     .model_type = "cohere2",
     .fields = cohere2_fields,
     .constants = R"({"attention_bias": false, "layer_norm_bias": false, "use_qk_norm": false})",
     .finish = finish_cohere2},
    {.architecture = "olmo2", .model_type = "olmo2", .names = norms_after, .finish = finish_olmo2},
    {.architecture = "granite",
     .model_type = "granite",
     .paired_rope = true,
     .fields = granite_fields,
     .finish = finish_granite},
    {.architecture = "smollm3",
     .model_type = "smollm3",
     .paired_rope = true,
     .constants = R"({"no_rope_layer_interval": 4})"},
    {.architecture = "gpt-oss",
     .model_type = "gpt_oss",
     .applies = has_experts,
     .wide_range = true,
     .fields = gpt_oss_fields,
     .names = gpt_oss_names,
     .finish = finish_gpt_oss},
    {.architecture = "deepseek2",
     .model_type = "deepseek_v2",
     .applies = has_softmax_experts,
     .fields = deepseek2_fields,
     .names = deepseek2_names,
     .constants = R"({"moe_layer_freq": 1, "norm_topk_prob": false})",
     .finish = finish_deepseek2},
    {.architecture = "deepseek2",
     .model_type = "deepseek_v3",
     .applies = has_sigmoid_experts,
     .fields = deepseek2_fields,
     .names = deepseek2_names,
     .constants = R"({"moe_layer_freq": 1, "norm_topk_prob": false, "topk_method": "noaux_tc",
                      "scoring_func": "sigmoid", "n_group": 1, "topk_group": 1})",
     .finish = finish_deepseek2},
    {.architecture = "glm4", .model_type = "glm4", .names = glm4_names, .finish = finish_glm4},
    {.architecture = "lfm2",
     .model_type = "lfm2",
     .fields = lfm2_fields,
     .names = lfm2_names,
     .constants = R"({"conv_bias": false, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0,
                      "block_auto_adjust_ff_dim": false})",
     .finish = finish_lfm2},
};

const GgufName* find_name(std::span<const GgufName> names, std::string_view stem) {
  auto found = std::find_if(names.begin(), names.end(), [&](auto& name) { return name.stem == stem; });
  return found == names.end() ? nullptr : &*found;
}

} // namespace

const GgufArchitecture& find_gguf_architecture(const GgufMetadata& metadata) {
  auto name = metadata.text("general.architecture");
  bool experts = has_experts(metadata);
  std::string known;
  for (auto& row : architectures) {
    if (row.architecture == name && (row.applies ? row.applies(metadata) : !experts)) {
      return row;
    }
    if (known.find(row.architecture) == std::string::npos) {
      known += (known.empty() ? "" : ", ") + std::string(row.architecture);
    }
  }
  fail(
      Kind::invalid,
      "[open_checkpoint] a GGUF file's architecture must be one of {}; got '{}'{}",
      known,
      name,
      experts ? " with experts" : "");
}

std::string hf_name(const GgufArchitecture& architecture, const std::string& name) {
  auto dot = name.rfind('.');
  if (dot == std::string::npos) {
    return name;
  }
  auto stem = name.substr(0, dot);
  auto part = name.substr(dot);
  if (auto* top = find_name(top_names, stem)) {
    return top->name + part;
  }
  auto middle = stem.find('.', 4);
  if (!stem.starts_with("blk.") || middle == std::string::npos) {
    return name;
  }
  auto layer = stem.substr(4, middle - 4);
  stem = stem.substr(middle + 1);
  auto* found = find_name(architecture.names, stem);
  found = found ? found : find_name(layer_names, stem);
  if (!found) {
    return name;
  }
  return fmt::format("model.layers.{}.{}{}", layer, found->name, found->bare ? "" : part);
}

const GgufTensor* find_gguf_tensor(const GgufContents& contents, const std::string& name) {
  auto found =
      std::find_if(contents.tensors.begin(), contents.tensors.end(), [&](auto& tensor) { return tensor.name == name; });
  return found == contents.tensors.end() ? nullptr : &*found;
}

std::string gguf_key(const GgufMetadata& metadata, const std::string& key) {
  return metadata.text("general.architecture") + "." + key;
}

} // namespace parallm
