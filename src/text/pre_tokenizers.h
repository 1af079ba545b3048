// How byte-level BPE tokenizers part a text before they merge: a table by the
// names that GGUF files use (tokenizer.ggml.pre). Free functions, any thread.
#pragma once

#include <string>
#include <vector>

namespace parallm {

struct PreTokenizer {
  const char* name;
  bool digits = false; // single digits first
  std::vector<const char*> splits{}; // regexes, one after another; none: GPT-2's own
  bool ignore_merges = false; // a word in the vocabulary is not built
  bool nfc = false;
  bool add_bos = false; // where a file does not say
};

/** "" means "default". Errors: invalid, with the known names. */
const PreTokenizer& find_pre_tokenizer(const std::string& name);

/** tokenizer.json's "pre_tokenizer". `space_first`: each text gets a space in
 * front where it has none. */
std::string pre_tokenizer_json(const PreTokenizer& pre, bool space_first = false);

} // namespace parallm
