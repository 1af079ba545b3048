// A vocabulary as OpenAI's tiktoken keeps it, which the repositories of Kimi and
// Moonlight have alone: lines of a token's bytes in base64 and its rank. As a
// tokenizer.json. Free functions, any thread.
#pragma once

#include "text/tokenizer.h"

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace parallm {

struct TiktokenFiles {
  std::string_view ranks; // tiktoken.model's text
  std::string tokenizer_class; // tokenizer_config.json's; says how texts are parted
  std::map<int32_t, AddedToken> added; // by id; they follow the ranks
};

/** Errors: invalid, for a class that is not known and a file that is none. */
TokenizerSource tiktoken_tokenizer(const TiktokenFiles& files);

} // namespace parallm
