#include "text/text_folder.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "text/bpe_files.h"
#include "text/spm_tokenizer.h"
#include "text/tiktoken.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>

namespace parallm {

namespace {

namespace fs = std::filesystem;

json::object read_object(const fs::path& path) {
  if (!fs::exists(path)) {
    return {};
  }
  json::value value = parse_json(read_file(path.string()), path.string());
  if (!value.is_object()) {
    fail(Kind::invalid, "[load] {} must hold a JSON object; got {}", path.string(), json_kind(value));
  }
  return std::move(value.as_object());
}

bool flag(const json::object& from, const char* key, bool fallback) {
  const json::value* value = from.if_contains(key);
  return value && value->is_bool() ? value->get_bool() : fallback;
}

std::string text(const json::object& from, const char* key) {
  const json::value* value = from.if_contains(key);
  return value && value->is_string() ? std::string(value->get_string()) : "";
}

/** A special token is a string, or an object with "content". */
std::string token_text(const json::value& value) {
  if (const auto* object = value.if_object()) {
    return text(*object, "content");
  }
  return value.is_string() ? std::string(value.get_string()) : "";
}

/** transformers' files about a tokenizer beside its vocabulary. */
class Settings {
 public:
  explicit Settings(const fs::path& folder)
      : config_(read_object(folder / "tokenizer_config.json")),
        map_(read_object(folder / "special_tokens_map.json")),
        model_type_(text(read_object(folder / "config.json"), "model_type")) {
    if (const auto* value = config_.if_contains("added_tokens_decoder"); value && value->is_object()) {
      read_added(value->get_object(), (folder / "tokenizer_config.json").string());
    }
    if (added_.empty() && !fs::exists(folder / "tokenizer.json")) {
      read_older(folder / "added_tokens.json");
    }
  }

  const json::object& config() const {
    return config_;
  }

  /** "bos_token" and its like. */
  json::object special_tokens() const {
    json::object out;
    for (const json::object* from : {&map_, &config_}) {
      for (const auto& [key, value] : *from) {
        std::string token = token_text(value);
        if (std::string_view(key).ends_with("_token") && !token.empty()) {
          out[key] = token;
        }
      }
    }
    return out;
  }

  /** Every text that is named as a special token. */
  std::vector<std::string> special_texts() const {
    std::vector<std::string> out;
    for (const auto& [key, value] : special_tokens()) {
      out.emplace_back(value.get_string());
    }
    for (const json::object* from : {&map_, &config_}) {
      for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
        const json::value* list = from->if_contains(key);
        for (const json::value& value : list && list->is_array() ? list->get_array() : json::array()) {
          out.push_back(token_text(value));
        }
      }
    }
    return out;
  }

  /** By id. */
  const std::map<int32_t, AddedToken>& added() const {
    return added_;
  }

  /** transformers' class of the tokenizer, without the "Fast" that older
   * versions put behind; of a file without one, the model type's. */
  std::string tokenizer_class() const {
    std::string name = text(config_, "tokenizer_class");
    if (name.empty()) {
      name = model_type_.starts_with("qwen2") || model_type_.starts_with("qwen3") ? "Qwen2Tokenizer" : "";
      name = model_type_ == "gpt2" ? "GPT2Tokenizer" : name;
    }
    return name.ends_with("Fast") ? name.substr(0, name.size() - 4) : name;
  }

  /** Of the classes whose BOS and EOS are flags of tokenizer_config.json. */
  bool like_llama() const {
    constexpr std::array classes = {"LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer"};
    return std::find(classes.begin(), classes.end(), tokenizer_class()) != classes.end();
  }

 private:
  void read_added(const json::object& tokens, const std::string& file) {
    for (const auto& [key, value] : tokens) {
      int32_t id = -1;
      auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
      std::string content = token_text(value);
      if (error != std::errc() || end != key.data() + key.size() || id < 0 || content.empty()) {
        fail(Kind::invalid, "[load] {}: added_tokens_decoder has an entry without an id or text: {}", file, key);
      }
      const json::object& flags = value.is_object() ? value.get_object() : json::object();
      const bool special = flag(flags, "special", false);
      added_[id] = AddedToken{
          .id = id,
          .content = std::move(content),
          .special = special,
          .single_word = flag(flags, "single_word", false),
          .lstrip = flag(flags, "lstrip", false),
          .rstrip = flag(flags, "rstrip", false),
          .normalized = flag(flags, "normalized", !special)};
    }
  }

  /** {"text": id}; a text that is named as a special token is one. */
  void read_older(const fs::path& path) {
    const std::vector<std::string> special = special_texts();
    for (const auto& [content, value] : read_object(path)) {
      if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() > INT32_MAX) {
        fail(Kind::invalid, "[load] {}: \"{}\" has no id", path.string(), std::string(content));
      }
      const bool named = std::find(special.begin(), special.end(), std::string(content)) != special.end();
      const auto id = static_cast<int32_t>(value.get_int64());
      added_[id] = {.id = id, .content = content, .special = named, .normalized = !named};
    }
  }

  json::object config_;
  json::object map_;
  std::string model_type_;
  std::map<int32_t, AddedToken> added_;
};

/** Ends by flags; `begins`: where the flag is absent. */
Ends ends_of(const Settings& settings, const json::object& special, bool begins) {
  Ends out;
  if (flag(settings.config(), "add_bos_token", begins)) {
    out.begin = text(special, "bos_token");
  }
  if (flag(settings.config(), "add_eos_token", false)) {
    out.end = text(special, "eos_token");
  }
  return out;
}

TokenizerSource of_spm(const fs::path& path, const Settings& settings, json::object& special) {
  SpmModel model = read_spm(read_file(path.string()), path.string());
  // A model may keep places for tokens that its users name.
  for (const auto& [id, token] : settings.added()) {
    const auto at = static_cast<size_t>(id);
    const bool elsewhere = std::find(model.pieces.begin(), model.pieces.end(), token.content) != model.pieces.end();
    if (at < model.pieces.size() && !elsewhere) {
      model.pieces[at] = token.content;
      model.types[at] = token.special ? piece_control : piece_user_defined;
    }
  }
  const auto piece = [&](const char* key, int32_t id) {
    if (!special.contains(key) && id >= 0 && static_cast<size_t>(id) < model.pieces.size()) {
      special[key] = model.pieces[id];
    }
  };
  piece("bos_token", model.bos);
  piece("eos_token", model.eos);
  const bool first_only = !flag(settings.config(), "legacy", !settings.like_llama());
  TokenizerSource out = spm_tokenizer(model, {.space_first_only = first_only});
  for (const auto& [id, token] : settings.added()) {
    const bool inside =
        static_cast<size_t>(id) < model.pieces.size() && model.types[id] == piece_user_defined && !token.special;
    if (!inside) {
      out.additions.tokens.push_back(token);
      // In a normalized text each part would have its own space in front.
      out.additions.tokens.back().normalized = token.normalized && !model.add_dummy_prefix;
    }
  }
  out.additions.ends = ends_of(settings, special, settings.like_llama());
  return out;
}

void add_all(const Settings& settings, TokenizerSource& source) {
  for (const auto& [id, token] : settings.added()) {
    source.additions.tokens.push_back(token);
  }
}

/** tiktoken.model or qwen.tiktoken and its like; empty: none. */
fs::path tiktoken_file(const fs::path& folder) {
  fs::path out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const fs::path& path = entry.path();
    const bool ranks = path.filename() == "tiktoken.model" || path.extension() == ".tiktoken";
    if (ranks && (out.empty() || path < out)) {
      out = path;
    }
  }
  return out;
}

/** `flags`: tokenizer_config.json's for BOS and EOS; a format's own BOS goes before texts unless it says no. */
TokenizerSource of_ranked(
    RankedTokenizer tokenizer,
    const Settings& settings,
    json::object& special,
    const char* begins,
    const char* ends) {
  for (const auto& [key, token] : {std::pair{"bos_token", &tokenizer.bos}, std::pair{"eos_token", &tokenizer.eos}}) {
    if (!token->empty() && !special.contains(key)) {
      special[key] = *token;
    }
  }
  if (!tokenizer.bos.empty() && flag(settings.config(), begins, true)) {
    tokenizer.source.additions.ends = Ends{.begin = text(special, "bos_token"), .end = {}};
    if (flag(settings.config(), ends, false)) {
      tokenizer.source.additions.ends->end = text(special, "eos_token");
    }
  }
  return std::move(tokenizer.source);
}

TokenizerSource tokenizer_of(const fs::path& folder, const Settings& settings, json::object& special) {
  TokenizerSource out;
  if (const fs::path path = folder / "tokenizer.json"; fs::exists(path)) {
    out.json = read_file(path.string());
    add_all(settings, out);
    // The file says itself what stands before a text; the flags of these classes go before it.
    const json::object& config = settings.config();
    if (settings.like_llama() && (config.contains("add_bos_token") || config.contains("add_eos_token"))) {
      out.additions.ends = ends_of(settings, special, true);
    }
  } else if (const fs::path path = folder / "tokenizer.model"; fs::exists(path)) {
    out = of_spm(path, settings, special);
  } else if (const fs::path path = folder / "tekken.json"; fs::exists(path)) {
    auto tokenizer = tekken_tokenizer(read_file(path.string()));
    out = of_ranked(std::move(tokenizer), settings, special, "add_bos_token", "add_eos_token");
    add_all(settings, out);
  } else if (const fs::path path = tiktoken_file(folder); !path.empty()) {
    const std::string ranks = read_file(path.string());
    auto tokenizer =
        tiktoken_tokenizer({.ranks = ranks, .tokenizer_class = settings.tokenizer_class(), .added = settings.added()});
    out = of_ranked(std::move(tokenizer), settings, special, "add_bod_token", "add_eod_token"); // Hunyuan's names
  } else if (fs::exists(folder / "vocab.json") && fs::exists(folder / "merges.txt")) {
    out = bpe_tokenizer(
        {.vocab = read_file((folder / "vocab.json").string()),
         .merges = read_file((folder / "merges.txt").string()),
         .tokenizer_class = settings.tokenizer_class(),
         .add_prefix_space = flag(settings.config(), "add_prefix_space", false)});
    add_all(settings, out);
    out.additions.ends = ends_of(settings, special, false);
  } else {
    fail(
        Kind::invalid,
        "[load] {} has no tokenizer.json, no tokenizer.model, no tekken.json, no tiktoken.model or *.tiktoken, and no "
        "vocab.json with merges.txt",
        folder.string());
  }
  for (std::string& token : settings.special_texts()) {
    out.additions.special.push_back(std::move(token));
  }
  return out;
}

using Templates = std::map<std::string, std::string>;

/** A string, or a list of {"name", "template"}. */
Templates templates_of(const json::object& from, const std::string& file) {
  Templates out;
  const json::value* value = from.if_contains("chat_template");
  if (value == nullptr || value->is_null()) {
    return out;
  }
  if (const auto* source = value->if_string()) {
    out["default"] = *source;
    return out;
  }
  if (!value->is_array()) {
    fail(Kind::invalid, "[load] {}: chat_template must be a string or a list; got {}", file, json_kind(*value));
  }
  for (const json::value& entry : value->get_array()) {
    const json::object& named = entry.is_object() ? entry.get_object() : json::object();
    const std::string name = text(named, "name");
    if (name.empty() || !named.contains("template") || !named.at("template").is_string()) {
      fail(
          Kind::invalid,
          "[load] {}: a chat_template of a list has a name and a template; got {}",
          file,
          json_excerpt(entry));
    }
    out[name] = text(named, "template");
  }
  return out;
}

Templates templates_of_folder(const fs::path& folder, const json::object& config) {
  Templates out;
  if (const fs::path path = folder / "chat_template.jinja"; fs::exists(path)) {
    out["default"] = read_file(path.string());
  }
  if (const fs::path more = folder / "additional_chat_templates"; fs::is_directory(more)) {
    for (const auto& entry : fs::directory_iterator(more)) {
      if (entry.path().extension() == ".jinja") {
        out[entry.path().stem().string()] = read_file(entry.path().string());
      }
    }
  }
  // The first place that has any counts, as in transformers.
  for (const char* file : {"chat_template.json", "tokenizer_config.json", "processor_config.json"}) {
    if (out.empty()) {
      const std::string name = (folder / file).string();
      out = templates_of(file == std::string_view("tokenizer_config.json") ? config : read_object(name), name);
    }
  }
  return out;
}

} // namespace

TextFiles read_text_folder(const std::string& folder) {
  const Settings settings(folder);
  json::object special = settings.special_tokens();
  TextFiles files;
  files.tokenizer = tokenizer_of(folder, settings, special);
  files.chat_templates = templates_of_folder(folder, settings.config());
  if (std::string end = text(special, "eos_token"); !end.empty()) {
    files.end_tokens.push_back(std::move(end));
  }
  files.special_tokens = json::serialize(special);
  return files;
}

std::string wanted_chat_template(const std::string& wanted, const std::map<std::string, std::string>& own) {
  std::error_code error;
  if (wanted.size() < 4096 && fs::is_regular_file(wanted, error)) {
    return read_file(wanted);
  }
  if (wanted.find('{') != std::string::npos) {
    return wanted;
  }
  if (auto found = own.find(wanted); found != own.end()) {
    return found->second;
  }
  std::string names;
  for (auto& [name, source] : own) {
    names += (names.empty() ? "" : ", ") + name;
  }
  fail_field(
      "chat-template",
      "[chat-template] must be a file, a template's text or one of the model's templates ({}); got {}",
      names.empty() ? "it has none" : names,
      wanted);
}

} // namespace parallm
