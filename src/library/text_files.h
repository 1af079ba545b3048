// What a checkpoint says about text: its tokenizer, chat template and special
// tokens, wherever the format keeps them.
#pragma once

#include "models/checkpoint.h"

#include <string>

namespace parallm {

struct TextFiles {
  std::string tokenizer_json;
  std::string chat_template; // Jinja source; empty: none
  std::string special_tokens; // JSON object: "bos_token": "<s>", ...
};

/** Of a folder: tokenizer.json, tokenizer_config.json, chat_template.jinja,
 * chat_template.json (transformers' names); of a GGUF file: its metadata.
 * Errors: invalid, naming the file. */
TextFiles text_files(const std::string& path, const Checkpoint& checkpoint);

} // namespace parallm
