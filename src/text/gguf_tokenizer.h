// A GGUF file's tokenizer metadata (ggml's gguf.md, "tokenizer.ggml.*") as the
// tokenizer.json that Hugging Face's library opens.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace parallm {

struct GgufVocabulary {
  std::string model; // tokenizer.ggml.model: "gpt2"
  std::string pre; // tokenizer.ggml.pre: "smollm", "llama-bpe", "qwen2", "default", ...
  std::vector<std::string> tokens;
  std::vector<int32_t> types; // llama.cpp's token types: 1 normal, 2 unknown, 3
                              // control, 4 user-defined, 6 byte
  std::vector<std::string> merges;
  int32_t bos = -1;
  bool add_bos = false;
};

/** Errors: invalid, for a `model` or `pre` that is not known (the text lists
 * the known ones). */
std::string tokenizer_json(const GgufVocabulary& vocabulary);

} // namespace parallm
