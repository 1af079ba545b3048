// What a GGUF file's metadata says about text. Plain data; any thread, also beside one that reads the file's tensors.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

/** The "tokenizer.*" metadata as it stands in the file; -1 where an id is
 * absent. */
struct GgufTokenizer {
  std::string model;
  std::string pre;
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<float> scores;
  std::vector<std::string> merges;
  int32_t bos = -1;
  int32_t eos = -1;
  int32_t eot = -1;
  int32_t eom = -1;
  int32_t unk = -1;
  // Absent: what the kind of tokenizer does by itself.
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
  std::optional<bool> remove_extra_whitespaces;
  std::string chat_template;
  std::map<std::string, std::string> named_templates; // "tokenizer.chat_template.<name>"
};

/** Errors: as read_gguf's (gguf.h). */
GgufTokenizer read_gguf_tokenizer(const std::string& path);

} // namespace parallm
