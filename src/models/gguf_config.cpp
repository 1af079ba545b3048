#include "base/error.h"
#include "models/gguf_names.h"

#include <boost/json/parse.hpp>

#include <algorithm>
#include <cstring>

namespace parallm {
namespace json = boost::json;

namespace {

/** Fields of every architecture, where the file has the key. */
constexpr GgufField shared_fields[] = {
    {"hidden_size", "embedding_length"},
    {"num_hidden_layers", "block_count"},
    {"intermediate_size", "feed_forward_length"},
    {"num_attention_heads", "attention.head_count"},
    {"num_key_value_heads", "attention.head_count_kv"},
    {"head_dim", "attention.key_length"},
    {"rms_norm_eps", "attention.layer_norm_rms_epsilon"},
    {"max_position_embeddings", "context_length"},
    {"rope_theta", "rope.freq_base"},
    {"sliding_window", "attention.sliding_window"},
    {"original_max_position_embeddings", "rope.scaling.original_context_length"}, // phi3 has it here
};
constexpr const char* required_keys[] =
    {"embedding_length", "block_count", "feed_forward_length", "attention.head_count", "context_length"};

/** A list of equal values, one a layer, is that value. */
template <typename T>
json::value one_or_all(const std::vector<T>& list) {
  bool equal = !list.empty() && std::all_of(list.begin(), list.end(), [&](auto& item) { return item == list[0]; });
  return equal ? json::value(list[0]) : json::value(json::array(list.begin(), list.end()));
}

json::value to_json(bool value) {
  return value;
}
json::value to_json(int64_t value) {
  return value;
}
json::value to_json(double value) {
  return value;
}
json::value to_json(const std::string& value) {
  return json::value(value);
}
template <typename T>
json::value to_json(const std::vector<T>& value) {
  return one_or_all(value);
}

void copy_fields(std::span<const GgufField> fields, const GgufMetadata& metadata, json::object& config) {
  for (auto& [field, key] : fields) {
    if (auto* value = metadata.find(gguf_key(metadata, key))) {
      config[field] = std::visit([](auto& held) { return to_json(held); }, *value);
    }
  }
}

/** A tensor of a few numbers; a check of its kind is the reader's. */
json::array numbers_of(const GgufTensor& tensor) {
  std::vector<float> values(tensor.bytes / sizeof(float));
  if (tensor.shape.size() != 1 || values.size() != size_t(tensor.shape[0])) {
    fail(Kind::invalid, "[gguf] tensor {} must be a list of float32", tensor.name);
  }
  std::memcpy(values.data(), tensor.file->data() + tensor.offset, tensor.bytes);
  return json::array(values.begin(), values.end());
}

/** RoPE's scaling: tensors of factors where the file has them, else keys. Empty: none. */
json::object rope_scaling(const GgufContents& contents) {
  auto& metadata = contents.metadata;
  if (auto* factors = find_gguf_tensor(contents, "rope_freqs.weight")) {
    return {{"rope_type", "frequency_factors"}, {"factors", numbers_of(*factors)}};
  }
  auto key = [&](const char* name) { return gguf_key(metadata, std::string("rope.scaling.") + name); };
  json::object out;
  auto copy = [&](const char* field, const char* name) {
    if (metadata.has(key(name))) {
      out[field] = metadata.number(key(name));
    }
  };
  if (metadata.has(key("original_context_length"))) {
    out["original_max_position_embeddings"] = metadata.integer(key("original_context_length"));
  }
  auto* longer = find_gguf_tensor(contents, "rope_factors_long.weight");
  auto* shorter = find_gguf_tensor(contents, "rope_factors_short.weight");
  if (longer && shorter) {
    out["type"] = "longrope";
    out["rope_type"] = "longrope";
    out["long_factor"] = numbers_of(*longer);
    out["short_factor"] = numbers_of(*shorter);
    return out;
  }
  // llama.cpp takes a factor without a type for linear.
  bool factor = metadata.has(key("factor"));
  auto type = metadata.text(key("type"), factor ? "linear" : "none");
  if (type == "none" || (type == "linear" && !factor)) {
    return {};
  }
  out["type"] = type;
  out["rope_type"] = type;
  copy("factor", "factor");
  copy("attention_factor", "yarn_attn_factor");
  copy("beta_fast", "yarn_beta_fast");
  copy("beta_slow", "yarn_beta_slow");
  return out;
}

/** Some of mlx-lm's models want it said. */
void set_head_dim(json::object& config) {
  const auto* heads = config.if_contains("num_attention_heads");
  const auto width = config.at("hidden_size").to_number<int64_t>();
  if (!config.contains("head_dim") && heads && heads->is_int64() && heads->get_int64() > 0) {
    config["head_dim"] = width / heads->get_int64();
  }
}

/** How much of a head is rotated, where that is not all of it. */
void set_rotated_part(const GgufMetadata& metadata, json::object& config) {
  auto key = gguf_key(metadata, "rope.dimension_count");
  if (!metadata.has(key)) {
    return;
  }
  int heads = metadata.integer(gguf_key(metadata, "attention.head_count"));
  if (heads <= 0) {
    fail(Kind::invalid, "[gguf] '{}' must be above 0; got {}", gguf_key(metadata, "attention.head_count"), heads);
  }
  int head = metadata.integer(
      gguf_key(metadata, "attention.key_length"), metadata.integer(gguf_key(metadata, "embedding_length")) / heads);
  int rotated = metadata.integer(key);
  if (rotated != head && head > 0) {
    config["partial_rotary_factor"] = double(rotated) / head;
  }
}

void check_supported(const GgufMetadata& metadata) {
  for (auto* key : required_keys) {
    auto name = gguf_key(metadata, key);
    if (!metadata.has(name)) {
      fail(Kind::invalid, "[gguf] '{}' is missing", name);
    }
  }
  auto keys = gguf_key(metadata, "attention.key_length"), values = gguf_key(metadata, "attention.value_length");
  bool latent = metadata.has(gguf_key(metadata, "attention.kv_lora_rank")); // there they differ
  if (!latent && metadata.has(keys) && metadata.has(values) && metadata.integer(keys) != metadata.integer(values)) {
    fail(
        Kind::invalid,
        "[gguf] '{}' must equal '{}'; got {} and {}",
        values,
        keys,
        metadata.integer(values),
        metadata.integer(keys));
  }
  auto causal = gguf_key(metadata, "attention.causal");
  if (!metadata.boolean(causal, true)) {
    fail(Kind::invalid, "[gguf] '{}' must be true: models that embed texts are not opened from GGUF", causal);
  }
}

} // namespace

json::object gguf_config(const GgufArchitecture& architecture, const GgufContents& contents) {
  auto& metadata = contents.metadata;
  check_supported(metadata);
  auto* embedding = find_gguf_tensor(contents, "token_embd.weight");
  if (!embedding || embedding->shape.size() != 2) {
    fail(Kind::invalid, "[gguf] tensor 'token_embd.weight' is missing, or no matrix");
  }
  auto config = json::parse(architecture.constants).as_object();
  config["model_type"] = architecture.model_type;
  config["vocab_size"] = embedding->shape[0];
  config["tie_word_embeddings"] = find_gguf_tensor(contents, "output.weight") == nullptr;
  copy_fields(shared_fields, metadata, config);
  copy_fields(architecture.fields, metadata, config);
  set_head_dim(config);
  auto* window = config.if_contains("sliding_window");
  if (window && window->is_int64() && window->get_int64() == 0) {
    config.erase("sliding_window"); // phi3's "none"
  }
  if (auto scaling = rope_scaling(contents); !scaling.empty()) {
    config["rope_scaling"] = std::move(scaling);
  }
  set_rotated_part(metadata, config);
  if (architecture.finish) {
    architecture.finish(contents, config);
  }
  return config;
}

} // namespace parallm
