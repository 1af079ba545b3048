// What a model folder says about text: its tokenizer, chat templates and
// special tokens, under transformers' file names. Free functions, any thread.
#pragma once

#include "text/tokenizer.h"

#include <map>
#include <string>

namespace parallm {

/** What a checkpoint says about text, wherever its format keeps it. */
struct TextFiles {
  TokenizerSource tokenizer;
  std::map<std::string, std::string> chat_templates; // Jinja sources by name; "default" is the one of a chat
  std::string special_tokens; // JSON object: "bos_token": "<s>", ...
  std::vector<std::string> end_tokens; // which end a turn by the tokenizer's word; may be empty
};

/** The tokenizer: tokenizer.json, else a SentencePiece tokenizer.model, else
 * Mistral's tekken.json, else tiktoken.model or *.tiktoken, else vocab.json and merges.txt; with tokenizer_config.json,
 * special_tokens_map.json and added_tokens.json. The templates: chat_template.jinja and additional_chat_templates/,
 * else chat_template.json, tokenizer_config.json or processor_config.json. Errors: invalid, naming the file. */
TextFiles read_text_folder(const std::string& folder);

/** `--chat-template`: a file's path, a template itself, or the name of one of the
 * model's; in this order. Errors: invalid. */
std::string wanted_chat_template(const std::string& wanted, const std::map<std::string, std::string>& own);

} // namespace parallm
