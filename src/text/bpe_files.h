// vocab.json and merges.txt, which GPT-2's tokenizer began with and some
// repositories still have alone, as a tokenizer.json. Free functions, any
// thread.
#pragma once

#include "text/tokenizer.h"

#include <string>
#include <string_view>

namespace parallm {

struct BpeFiles {
  std::string vocab; // vocab.json's text
  std::string merges; // merges.txt's
  std::string tokenizer_class; // tokenizer_config.json's; says how texts are parted
  bool add_prefix_space = false;
};

/** Errors: invalid, for a class that is not known (the text lists the known
 * ones). */
TokenizerSource bpe_tokenizer(const BpeFiles& files);

} // namespace parallm
