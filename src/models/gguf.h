// A GGUF file (ggml's gguf.md) of architecture "llama" as what a checkpoint
// folder holds: config.json's fields, tensors under Hugging Face's names,
// quantization, and the tokenizer's metadata. mx::load_gguf reads the tensors:
// Q4_0, Q4_1 and Q8_0 as affine codes in groups of 32, exactly; other quantized
// kinds it makes float16. Any thread.
#pragma once

#include "models/config.h"
#include "nn/weights.h"

#include <map>
#include <optional>

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

struct GgufFile {
  Config config;
  std::unordered_map<std::string, mx::array> arrays;
  Quantizations quantizations;
  GgufTokenizer tokenizer;
};

/** Errors: invalid, for a file that is no GGUF, is cut off or corrupt, or of
 * another architecture. */
GgufFile read_gguf(const std::string& path);

/** Walks a GGUF file's header within the file's bounds, because mx::load_gguf
 * trusts parts of it. Errors: invalid. */
void check_gguf(const std::string& path);

} // namespace parallm
