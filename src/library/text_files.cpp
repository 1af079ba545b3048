#include "library/text_files.h"

#include "base/json.h"
#include "models/gguf_text.h"
#include "text/gguf_tokenizer.h"

#include <algorithm>
#include <array>
#include <filesystem>

namespace parallm {

namespace {

/** Control tokens that end a turn in the templates that models have; a GGUF file
 * often names only the end of a text (llama.cpp's llama-vocab.cpp looks for the
 * same ones). */
constexpr std::array turn_ends = {
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|eot|>",
    "<EOT>",
    "_<EOT>",
    "<end_of_utterance>",
    "[EOT]",
};

TextFiles of_gguf(const GgufTokenizer& gguf) {
  TextFiles files;
  files.tokenizer = gguf_tokenizer(
      {.model = gguf.model,
       .pre = gguf.pre,
       .tokens = gguf.tokens,
       .types = gguf.types,
       .scores = gguf.scores,
       .merges = gguf.merges,
       .bos = gguf.bos,
       .eos = gguf.eos,
       .add_bos = gguf.add_bos,
       .add_eos = gguf.add_eos,
       .add_space_prefix = gguf.add_space_prefix,
       .remove_extra_whitespaces = gguf.remove_extra_whitespaces});
  files.chat_templates = gguf.named_templates;
  if (!gguf.chat_template.empty()) {
    files.chat_templates["default"] = gguf.chat_template;
  }
  json::object tokens;
  const auto add = [&](const char* key, int32_t id) {
    if (id >= 0 && id < static_cast<int32_t>(gguf.tokens.size())) {
      tokens[key] = gguf.tokens[id];
    }
  };
  add("bos_token", gguf.bos);
  add("eos_token", gguf.eos);
  add("unk_token", gguf.unk);
  files.special_tokens = json::serialize(tokens);
  for (const AddedToken& token : files.tokenizer.additions.tokens) {
    if (token.special && std::find(turn_ends.begin(), turn_ends.end(), token.content) != turn_ends.end()) {
      files.end_tokens.push_back(token.content);
    }
  }
  if (gguf.eom >= 0 && gguf.eom < static_cast<int32_t>(gguf.tokens.size())) {
    files.end_tokens.push_back(gguf.tokens[gguf.eom]);
  }
  return files;
}

} // namespace

TextFiles text_files(const std::string& path) {
  return std::filesystem::is_directory(path) ? read_text_folder(path) : of_gguf(read_gguf_tokenizer(path));
}

} // namespace parallm
