// A vocabulary as OpenAI's tiktoken keeps it, which the repositories of Kimi,
// Moonlight, Qwen 1 and Hunyuan have alone: lines of a token's bytes in base64 and
// its rank; and Mistral's tekken.json, which holds the same in JSON. As a
// tokenizer.json. Free functions, any thread.
#pragma once

#include "text/tokenizer.h"

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace parallm {

struct TiktokenFiles {
  std::string_view ranks; // the file's text
  std::string tokenizer_class; // tokenizer_config.json's; says how texts are parted
  std::map<int32_t, AddedToken> added; // by id; they follow the ranks
};

/** A tokenizer, and what its tokens are by default, where the format or class says it; else empty. */
struct RankedTokenizer {
  TokenizerSource source;
  std::string bos;
  std::string eos;
};

/** Errors: invalid, for a class that is not known and a file that is none. */
RankedTokenizer tiktoken_tokenizer(const TiktokenFiles& files);

/** tekken.json's text: special tokens come first, then those of the vocabulary that the model knows. Errors: invalid.
 */
RankedTokenizer tekken_tokenizer(const std::string& text);

} // namespace parallm
