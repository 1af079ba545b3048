// A GGUF file's tokenizer metadata (ggml's gguf.md, "tokenizer.ggml.*") as the
// tokenizer.json that Hugging Face's library opens. Free functions, any thread.
#pragma once

#include "text/tokenizer.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

struct GgufVocabulary {
  std::string model; // tokenizer.ggml.model: "gpt2" (byte-level BPE) or "llama" (SentencePiece)
  std::string pre; // tokenizer.ggml.pre: "smollm", "llama-bpe", "qwen2", "default", ...
  std::vector<std::string> tokens;
  std::vector<int32_t> types; // llama.cpp's token types: 1 normal, 2 unknown, 3
                              // control, 4 user-defined, 5 unused, 6 byte
  std::vector<float> scores; // of "llama": the greatest is joined first
  std::vector<std::string> merges; // of "gpt2"
  int32_t bos = -1;
  int32_t eos = -1;
  // Absent: what llama.cpp takes for the kind.
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;
  std::optional<bool> remove_extra_whitespaces;
};

/** Errors: invalid, for a `model` or `pre` that is not known (the text lists
 * the known ones). */
TokenizerSource gguf_tokenizer(GgufVocabulary vocabulary);

} // namespace parallm
