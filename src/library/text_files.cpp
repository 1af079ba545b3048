#include "library/text_files.h"

#include "base/error.h"
#include "base/file.h"
#include "text/gguf_tokenizer.h"

#include <boost/json.hpp>

#include <filesystem>

namespace parallm {

namespace {

namespace fs = std::filesystem;
namespace json = boost::json;

json::object read_object(const fs::path& path) {
  if (!fs::exists(path)) {
    return {};
  }
  boost::system::error_code error;
  json::value value = json::parse(read_file(path.string()), error);
  if (error || !value.is_object()) {
    fail(
        Kind::invalid,
        "[load] {} holds no JSON object: {}",
        path.string(),
        error ? error.message() : "another kind of value");
  }
  return std::move(value.as_object());
}

/** A special token is a string, or an object with "content". */
void add_special_tokens(const json::object& from, json::object& tokens) {
  for (const auto& [key, value] : from) {
    if (!std::string_view(key).ends_with("_token")) {
      continue;
    }
    if (value.is_string()) {
      tokens[key] = value;
    } else if (const auto* object = value.if_object()) {
      if (const auto* content = object->if_contains("content")) {
        tokens[key] = *content;
      }
    }
  }
}

/** A string, or a list of {"name", "template"} of which "default" is meant. */
std::string template_of(const json::object& config) {
  const json::value* value = config.if_contains("chat_template");
  if (value == nullptr) {
    return "";
  }
  if (const auto* text = value->if_string()) {
    return std::string(*text);
  }
  if (const auto* list = value->if_array()) {
    for (const json::value& entry : *list) {
      const auto* object = entry.if_object();
      const auto* name = object ? object->if_contains("name") : nullptr;
      const auto* source = object ? object->if_contains("template") : nullptr;
      if (name && source && source->is_string() && *name == "default") {
        return std::string(source->as_string());
      }
    }
  }
  return "";
}

TextFiles of_folder(const fs::path& folder) {
  TextFiles files;
  const fs::path tokenizer = folder / "tokenizer.json";
  if (!fs::exists(tokenizer)) {
    fail(Kind::invalid, "[load] {} has no tokenizer.json", folder.string());
  }
  files.tokenizer_json = read_file(tokenizer.string());
  const json::object config = read_object(folder / "tokenizer_config.json");
  json::object tokens;
  add_special_tokens(read_object(folder / "special_tokens_map.json"), tokens);
  add_special_tokens(config, tokens);
  files.special_tokens = json::serialize(tokens);
  const fs::path jinja = folder / "chat_template.jinja";
  files.chat_template =
      fs::exists(jinja) ? read_file(jinja.string()) : template_of(read_object(folder / "chat_template.json"));
  if (files.chat_template.empty()) {
    files.chat_template = template_of(config);
  }
  return files;
}

TextFiles of_gguf(const GgufTokenizer& gguf) {
  TextFiles files;
  files.tokenizer_json = tokenizer_json(
      {.model = gguf.model,
       .pre = gguf.pre,
       .tokens = gguf.tokens,
       .types = gguf.types,
       .merges = gguf.merges,
       .bos = gguf.bos,
       .add_bos = gguf.add_bos.value_or(false)});
  files.chat_template = gguf.chat_template;
  json::object tokens;
  const auto add = [&](const char* key, int32_t id) {
    if (id >= 0 && id < static_cast<int32_t>(gguf.tokens.size())) {
      tokens[key] = gguf.tokens[id];
    }
  };
  add("bos_token", gguf.bos);
  add("eos_token", gguf.eos);
  files.special_tokens = json::serialize(tokens);
  return files;
}

} // namespace

TextFiles text_files(const std::string& path, const Checkpoint& checkpoint) {
  return checkpoint.gguf ? of_gguf(*checkpoint.gguf) : of_folder(path);
}

} // namespace parallm
