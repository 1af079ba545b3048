#include "library/convert.h"

#include "base/error.h"
#include "base/json.h"
#include "library/model_files.h"
#include "library/text_files.h"
#include "models/convert.h"
#include "models/gguf_text.h"
#include "models/quant_recipe.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

namespace parallm {

namespace fs = std::filesystem;

namespace {

/** A folder beside the target, removed unless it takes the target's place. */
class NewFolder {
 public:
  explicit NewFolder(const fs::path& target) : target_(target) {
    if (fs::exists(target) && (!fs::is_directory(target) || !fs::is_empty(target))) {
      fail(Kind::invalid, "[convert] {} exists already; remove it or name another folder", target.string());
    }
    const auto parent = fs::absolute(target).parent_path();
    std::error_code error;
    fs::create_directories(parent, error);
    path_ = parent / fmt::format(".{}.partial-{}", target.filename().string(), ::getpid());
    fs::remove_all(path_, error);
    if (!fs::create_directory(path_, error)) {
      fail(Kind::invalid, "[convert] can't make a folder in {}: {}", parent.string(), error.message());
    }
  }

  ~NewFolder() {
    std::error_code error; // a left-over is all that can go wrong here
    fs::remove_all(path_, error);
  }

  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  const fs::path& path() const {
    return path_;
  }

  void keep() {
    std::error_code error;
    fs::rename(path_, target_, error);
    if (error) {
      fail(Kind::invalid, "[convert] can't rename {} to {}: {}", path_.string(), target_.string(), error.message());
    }
  }

 private:
  fs::path target_;
  fs::path path_;
};

fs::path target_of(const std::string& text) {
  fs::path path = fs::path(text).lexically_normal();
  return path.has_filename() ? path : path.parent_path(); // of "folder/"
}

/** What belongs to a model beside its weights and config.json (mlx-lm's DEFAULT_ALLOW_PATTERNS, and licences). */
bool goes_along(const fs::path& file) {
  const auto name = file.filename().string();
  // The last is another tool's word on how the source was quantized.
  for (auto other : {"config.json", "model.safetensors.index.json", "hf_quant_config.json"}) {
    if (name == other) {
      return false;
    }
  }
  for (auto ending : {".json", ".jsonl", ".jinja", ".txt", ".tiktoken", ".py", "tokenizer.model", "tiktoken.model"}) {
    if (name.ends_with(ending)) {
      return true;
    }
  }
  return name.starts_with("LICENSE") || name.starts_with("NOTICE");
}

void copy_files(const fs::path& from, const fs::path& to) {
  for (const auto& entry : fs::directory_iterator(from)) {
    if (entry.is_regular_file() && goes_along(entry.path())) {
      fs::copy_file(entry.path(), to / entry.path().filename());
    }
  }
  if (const auto* more = "additional_chat_templates"; fs::is_directory(from / more)) {
    fs::copy(from / more, to / more);
  }
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) {
    fail(Kind::invalid, "[convert] can't write {}", path.string());
  }
}

using Ids = std::map<std::string_view, size_t>; // of a GGUF file's tokens: their places in its vocabulary

Ids ids_of(const GgufTokenizer& gguf) {
  Ids ids;
  for (size_t i = 0; i < gguf.tokens.size(); ++i) {
    ids.emplace(gguf.tokens[i], i);
  }
  return ids;
}

/** A post-processor that puts `ends` around each text: transformers heeds add_bos_token of its own classes alone. */
json::object processor_of(const Ends& ends, const Ids& ids) {
  const auto special = [](const std::string& token) {
    return json::object{{"SpecialToken", {{"id", token}, {"type_id", 0}}}};
  };
  json::object known;
  json::array single, pair;
  for (const char* text : {"A", "B"}) {
    json::array parts;
    if (!ends.begin.empty()) {
      parts.push_back(special(ends.begin));
    }
    parts.push_back(json::object{{"Sequence", {{"id", text}, {"type_id", 0}}}});
    if (!ends.end.empty()) {
      parts.push_back(special(ends.end));
    }
    pair.insert(pair.end(), parts.begin(), parts.end());
    single = single.empty() ? parts : single;
  }
  for (const auto& token : {ends.begin, ends.end}) {
    if (!token.empty()) {
      json::array id(1, ids.at(token)), name(1, json::string(token));
      known[token] = {{"id", token}, {"ids", id}, {"tokens", name}};
    }
  }
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", known}};
}

/** tokenizer.json with what the rest of a GGUF file's metadata adds. */
std::string whole_tokenizer(const TokenizerSource& source, const Ids& ids) {
  auto tokenizer = parse_json(source.json, "tokenizer").as_object();
  auto& added = tokenizer["added_tokens"];
  if (!added.is_array()) {
    added = json::array();
  }
  for (const auto& token : source.additions.tokens) {
    const auto own = ids.find(token.content);
    const auto same = [&](const json::value& other) { return other.at("content").as_string() == token.content; };
    auto& list = added.as_array();
    if (own != ids.end() && std::none_of(list.begin(), list.end(), same)) {
      list.push_back(
          {{"id", own->second},
           {"content", token.content},
           {"single_word", token.single_word},
           {"lstrip", token.lstrip},
           {"rstrip", token.rstrip},
           {"normalized", token.normalized},
           {"special", token.special}});
    }
  }
  if (const auto& ends = source.additions.ends; ends && !(ends->begin.empty() && ends->end.empty())) {
    tokenizer["post_processor"] = processor_of(*ends, ids);
  }
  return json_text(tokenizer);
}

/** One template is a string, several are a list of {"name", "template"}. */
json::value templates_of(const std::map<std::string, std::string>& templates) {
  if (templates.size() == 1 && templates.contains("default")) {
    return json::value(templates.at("default"));
  }
  json::array list;
  for (const auto& [name, source] : templates) {
    list.push_back(json::object{{"name", name}, {"template", source}});
  }
  return list;
}

/** A GGUF file's tokenizer as transformers' files. */
void write_tokenizer(const TextFiles& text, const Ids& ids, const fs::path& to) {
  write_text(to / "tokenizer.json", whole_tokenizer(text.tokenizer, ids));
  auto config = parse_json(text.special_tokens, "special tokens").as_object();
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["clean_up_tokenization_spaces"] = false;
  if (!text.chat_templates.empty()) {
    config["chat_template"] = templates_of(text.chat_templates);
  }
  write_text(to / "tokenizer_config.json", pretty_json(config) + "\n");
}

/** config.json then names every token that ends a text; the metadata often names but one. */
void add_end_tokens(const TextFiles& text, const Ids& ids, std::vector<int32_t>& eos_ids) {
  for (const auto& token : text.end_tokens) {
    const auto id = static_cast<int32_t>(ids.at(token));
    if (std::find(eos_ids.begin(), eos_ids.end(), id) == eos_ids.end()) {
      eos_ids.push_back(id);
    }
  }
  std::sort(eos_ids.begin(), eos_ids.end());
}

std::optional<mx::Dtype> dtype_of(const std::string& name) {
  if (name.empty()) {
    return {};
  }
  for (auto [known, dtype] :
       {std::pair{"float32", mx::float32}, {"float16", mx::float16}, {"bfloat16", mx::bfloat16}}) {
    if (name == known) {
      return dtype;
    }
  }
  fail_field("dtype", "[convert] dtype must be float32, float16 or bfloat16; got {}", name);
}

Conversion conversion_of(const ConvertOptions& options) {
  if (options.quantize && options.dequantize) {
    fail(Kind::invalid, "[convert] a model is quantized or dequantized; both were asked for");
  }
  Conversion how;
  how.dtype = dtype_of(options.dtype);
  how.dequantize = options.dequantize;
  how.recipe = options.recipe;
  if (options.quantize) {
    how.quantize = make_quantization("[convert]", options.mode, options.group_size, options.bits);
  } else if (!options.recipe.empty()) {
    fail(Kind::invalid, "[convert] the recipe {} needs quantize", options.recipe);
  }
  return how;
}

} // namespace

Converted convert(const ConvertOptions& options, const std::function<void(const ConvertProgress&)>& progress) {
  const auto how = conversion_of(options);
  NewFolder folder(target_of(options.mlx_path));
  const auto source = model_files(options.model_path, options.on_fetch);
  auto checkpoint = open_checkpoint(source);
  if (fs::is_directory(source)) {
    copy_files(source, folder.path());
  } else {
    const auto gguf = read_gguf_tokenizer(source);
    const auto text = text_files(source);
    const auto ids = ids_of(gguf);
    write_tokenizer(text, ids, folder.path());
    add_end_tokens(text, ids, checkpoint.eos_ids);
  }
  auto model = convert_model(std::move(checkpoint), how);
  const Converted out{model.bytes, model.parameters, model.widened};
  ConvertProgress now{0, model.bytes};
  write_model(folder.path().string(), std::move(model), [&](size_t bytes) {
    now.written += bytes;
    if (progress) {
      progress(now);
    }
  });
  folder.keep();
  return out;
}

std::vector<std::string> convert_modes() {
  return quantization_modes();
}

std::vector<std::string> convert_recipes() {
  return quant_recipes();
}

} // namespace parallm
