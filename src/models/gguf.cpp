#include "models/gguf.h"

#include "base/error.h"

#include <mlx/io.h>

#include <algorithm>
#include <map>

namespace parallm {

namespace {

using Metadata = std::unordered_map<std::string, mx::GGUFMetaData>;

/** Typed reading of the metadata; errors name the key. */
class Fields {
 public:
  explicit Fields(const Metadata& metadata) : metadata_(metadata) {}

  bool has(const std::string& key) const {
    return metadata_.contains(key);
  }

  std::string text(const std::string& key) const {
    return value<std::string>(key, "a string");
  }

  std::string text(const std::string& key, std::string fallback) const {
    return has(key) ? text(key) : fallback;
  }

  std::vector<std::string> texts(const std::string& key) const {
    return value<std::vector<std::string>>(key, "a list of strings");
  }

  double number(const std::string& key) const {
    auto array = value<mx::array>(key, "a number");
    if (array.size() != 1) {
      wrong(key, "one number");
    }
    return mx::astype(array, mx::float32).item<float>();
  }

  int integer(const std::string& key) const {
    auto array = value<mx::array>(key, "a number");
    if (array.size() != 1) {
      wrong(key, "one number");
    }
    return mx::astype(array, mx::int32).item<int>();
  }

  int integer(const std::string& key, int fallback) const {
    return has(key) ? integer(key) : fallback;
  }

  template <typename T>
  std::vector<T> list(const std::string& key, mx::Dtype dtype) const {
    if (!has(key)) {
      return {};
    }
    auto array = mx::astype(value<mx::array>(key, "a list"), dtype);
    mx::eval(array);
    return {array.data<T>(), array.data<T>() + array.size()};
  }

 private:
  [[noreturn]] static void wrong(const std::string& key, const char* wanted) {
    fail(Kind::invalid, "[gguf] '{}' must be {}", key, wanted);
  }

  template <typename T>
  T value(const std::string& key, const char* wanted) const {
    auto found = metadata_.find(key);
    if (found == metadata_.end()) {
      fail(Kind::invalid, "[gguf] '{}' is missing", key);
    }
    auto* value = std::get_if<T>(&found->second);
    if (!value) {
      wrong(key, wanted);
    }
    return *value;
  }

  const Metadata& metadata_;
};

/** llama.cpp's convert_hf_to_gguf.py reorders q's and k's rows so that RoPE's
 * pairs lie side by side; this is its inverse, on any array whose first axis is
 * the rows. */
mx::array unpermute(const mx::array& x, int heads) {
  auto shape = x.shape();
  int head_dim = shape[0] / heads;
  mx::Shape split{heads, head_dim / 2, 2};
  for (size_t i = 1; i < shape.size(); ++i) {
    split.push_back(shape[i]);
  }
  return mx::reshape(mx::swapaxes(mx::reshape(x, split), 1, 2), shape);
}

const std::map<std::string, std::string> layer_names = {
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
    {"attn_norm", "input_layernorm"},
    {"ffn_norm", "post_attention_layernorm"},
};
const std::map<std::string, std::string> top_names = {
    {"token_embd", "model.embed_tokens"},
    {"output_norm", "model.norm"},
    {"output", "lm_head"},
};

/** Hugging Face's name for a GGUF tensor; an unknown one stays as it is, for
 * the weights' list of extra tensors. */
std::string hf_name(const std::string& name) {
  auto dot = name.rfind('.');
  if (dot == std::string::npos) {
    return name;
  }
  auto stem = name.substr(0, dot);
  auto part = name.substr(dot);
  if (auto top = top_names.find(stem); top != top_names.end()) {
    return top->second + part;
  }
  auto middle = stem.find('.', 4);
  if (stem.starts_with("blk.") && middle != std::string::npos) {
    auto layer = layer_names.find(stem.substr(middle + 1));
    if (layer != layer_names.end()) {
      return "model.layers." + stem.substr(4, middle - 4) + "." + layer->second + part;
    }
  }
  return name;
}

boost::json::object rope_scaling(const Fields& fields, GgufFile& file) {
  if (auto found = file.arrays.find("rope_freqs.weight"); found != file.arrays.end()) {
    auto factors = mx::astype(found->second, mx::float32);
    mx::eval(factors);
    boost::json::array numbers(factors.data<float>(), factors.data<float>() + factors.size());
    file.arrays.erase(found);
    return {{"rope_type", "frequency_factors"}, {"factors", numbers}};
  }
  auto type = fields.text("llama.rope.scaling.type", "none");
  boost::json::object out{{"rope_type", type == "none" ? "default" : type}};
  if (fields.has("llama.rope.scaling.factor")) {
    out["factor"] = fields.number("llama.rope.scaling.factor");
  }
  if (fields.has("llama.rope.scaling.original_context_length")) {
    out["original_max_position_embeddings"] = fields.integer("llama.rope.scaling.original_context_length");
  }
  return out;
}

int vocabulary(const GgufFile& file) {
  auto found = file.arrays.find("model.embed_tokens.weight");
  if (found == file.arrays.end()) {
    fail(Kind::invalid, "[gguf] tensor 'token_embd.weight' is missing");
  }
  return found->second.shape(0);
}

Config config_of(const Fields& fields, GgufFile& file) {
  boost::json::object json{
      {"model_type", "llama"},
      {"hidden_size", fields.integer("llama.embedding_length")},
      {"num_hidden_layers", fields.integer("llama.block_count")},
      {"intermediate_size", fields.integer("llama.feed_forward_length")},
      {"num_attention_heads", fields.integer("llama.attention.head_count")},
      {"rms_norm_eps", fields.number("llama.attention.layer_norm_rms_epsilon")},
      {"max_position_embeddings", fields.integer("llama.context_length")},
      {"vocab_size", vocabulary(file)},
      {"tie_word_embeddings", !file.arrays.contains("lm_head.weight")},
      {"rope_scaling", rope_scaling(fields, file)},
  };
  auto copy = [&](const char* to, const char* key) {
    if (fields.has(key)) {
      json[to] = fields.integer(key);
    }
  };
  copy("num_key_value_heads", "llama.attention.head_count_kv");
  copy("head_dim", "llama.attention.key_length");
  if (fields.has("llama.rope.freq_base")) {
    json["rope_theta"] = fields.number("llama.rope.freq_base");
  }
  return {std::move(json), "gguf"};
}

GgufTokenizer tokenizer_of(const Fields& fields) {
  GgufTokenizer out;
  auto key = [](const char* name) { return std::string("tokenizer.ggml.") + name; };
  out.model = fields.text(key("model"));
  out.pre = fields.text(key("pre"), "default");
  out.tokens = fields.texts(key("tokens"));
  out.types = fields.list<int32_t>(key("token_type"), mx::int32);
  out.scores = fields.list<float>(key("scores"), mx::float32);
  if (fields.has(key("merges"))) {
    out.merges = fields.texts(key("merges"));
  }
  out.bos = fields.integer(key("bos_token_id"), -1);
  out.eos = fields.integer(key("eos_token_id"), -1);
  out.eot = fields.integer(key("eot_token_id"), -1);
  out.eom = fields.integer(key("eom_token_id"), -1);
  out.unk = fields.integer(key("unknown_token_id"), -1);
  auto flag = [&](const char* name) -> std::optional<bool> {
    return fields.has(key(name)) ? std::optional(fields.integer(key(name)) != 0) : std::nullopt;
  };
  out.add_bos = flag("add_bos_token");
  out.add_eos = flag("add_eos_token");
  out.add_space_prefix = flag("add_space_prefix");
  out.remove_extra_whitespaces = flag("remove_extra_whitespaces");
  out.chat_template = fields.text("tokenizer.chat_template", "");
  if (fields.has("tokenizer.chat_templates")) {
    for (auto& name : fields.texts("tokenizer.chat_templates")) {
      out.named_templates[name] = fields.text("tokenizer.chat_template." + name, "");
    }
  }
  return out;
}

/** Codes are uint32 with 32/bits weights each, and a scale is shared by 32
 * weights. */
Quantizations quantizations_of(const std::unordered_map<std::string, mx::array>& arrays) {
  constexpr int group = 32;
  Quantizations out;
  for (auto& [name, array] : arrays) {
    if (!name.ends_with(".scales")) {
      continue;
    }
    auto layer = name.substr(0, name.size() - 7);
    auto codes = arrays.find(layer + ".weight");
    check(codes != arrays.end(), "gguf: scales come with codes");
    int inputs = array.shape(-1) * group;
    out.layers[layer] = Quantization{group, codes->second.shape(-1) * 32 / inputs};
  }
  return out;
}

} // namespace

GgufFile read_gguf(const std::string& path) {
  check_gguf(path);
  auto [arrays, metadata] = mx::load_gguf(path);
  Fields fields(metadata);
  auto architecture = fields.text("general.architecture");
  if (architecture != "llama") {
    fail(Kind::invalid, "[open_checkpoint] a GGUF file's architecture must be llama; got '{}'", architecture);
  }
  GgufFile file;
  for (auto& [name, array] : arrays) {
    file.arrays.insert_or_assign(hf_name(name), array);
  }
  file.config = config_of(fields, file);
  file.tokenizer = tokenizer_of(fields);
  file.quantizations = quantizations_of(file.arrays);

  int heads = file.config.count("num_attention_heads");
  int kv_heads = file.config.count("num_key_value_heads", heads);
  for (auto& [name, array] : file.arrays) {
    bool q = name.find(".self_attn.q_proj.") != std::string::npos;
    bool k = name.find(".self_attn.k_proj.") != std::string::npos;
    int count = q ? heads : kv_heads;
    if ((q || k) && array.shape(0) % (2 * count) == 0) {
      array = unpermute(array, count);
    }
  }
  return file;
}

} // namespace parallm
