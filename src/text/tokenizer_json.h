// Parts of a tokenizer.json as text. Written by hand, not as a JSON tree: a
// vocabulary of 262,144 tokens is 30 MB of it. Free functions, any thread.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace parallm {

/** A JSON string. */
std::string quoted(std::string_view text);

struct BpeModel {
  const std::vector<std::string>& tokens; // by id
  std::vector<std::pair<std::string_view, std::string_view>> merges; // best first
  std::string unk; // empty: none
  bool byte_fallback = false;
  bool ignore_merges = false; // a word in the vocabulary is not built
};

std::string bpe_json(const BpeModel& model);
std::string
unigram_json(const std::vector<std::string>& tokens, const std::vector<float>& scores, int unk, bool byte_fallback);

/** Each part is JSON; an empty one is null. */
std::string tokenizer_json(
    const std::string& normalizer,
    const std::string& pre_tokenizer,
    const std::string& decoder,
    const std::string& model);

/** A Sequence of steps, each JSON; of none: empty. `list`: what the format calls
 * the steps of this kind ("normalizers", ...). */
std::string sequence_json(const char* list, const std::vector<std::string>& steps);

/** Errors: invalid, for a token that stands there twice. `where` names the file
 * or field. */
void check_unique(const std::vector<std::string>& tokens, const char* where);

} // namespace parallm
