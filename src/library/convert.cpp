#include "library/convert.h"

#include "base/error.h"
#include "base/json.h"
#include "library/text_files.h"
#include "models/convert.h"
#include "models/quant_recipe.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

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
  for (auto ending : {".json", ".jsonl", ".jinja", ".txt", ".tiktoken", ".py", "tokenizer.model"}) {
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
}

void write_text(const fs::path& path, const std::string& text) {
  std::ofstream out(path, std::ios::binary);
  out << text;
  out.close();
  if (!out) {
    fail(Kind::invalid, "[convert] can't write {}", path.string());
  }
}

/** A GGUF file's tokenizer as transformers' files. */
void write_tokenizer(const TextFiles& text, const fs::path& to) {
  write_text(to / "tokenizer.json", text.tokenizer.json);
  auto config = parse_json(text.special_tokens, "special tokens").as_object();
  config["tokenizer_class"] = "PreTrainedTokenizerFast";
  config["clean_up_tokenization_spaces"] = false;
  if (auto found = text.chat_templates.find("default"); found != text.chat_templates.end() && !found->second.empty()) {
    config["chat_template"] = found->second;
  }
  write_text(to / "tokenizer_config.json", pretty_json(config) + "\n");
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
  auto checkpoint = open_checkpoint(options.model_path);
  if (checkpoint.gguf) {
    write_tokenizer(text_files(options.model_path, checkpoint), folder.path());
  } else {
    copy_files(options.model_path, folder.path());
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
