// A GGUF file as what a checkpoint folder holds: config.json's fields, tensors under Hugging Face's names,
// quantization, and the tokenizer's metadata. gguf_reader.h walks the file, gguf_types.h says what becomes of each
// tensor kind, gguf_names.h holds the architectures. Engine thread only (it makes MLX arrays).
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
  /** What activations and KV had best be in: most of the dense weights', where most weights are dense; else float16,
   * or bfloat16 where the architecture needs its range. */
  mx::Dtype dtype = mx::float16;
  GgufTokenizer tokenizer;
};

/** Any one part of a file that is split into several stands for all of them. Errors: invalid, for a file that is no
 * GGUF, is cut off or corrupt, or of an architecture or a tensor kind that can't be opened. */
GgufFile read_gguf(const std::string& path);

} // namespace parallm
