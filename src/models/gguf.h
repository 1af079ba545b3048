// A GGUF file as what a checkpoint folder holds: config.json's fields, tensors under Hugging Face's names,
// quantization. gguf_reader.h walks the file, gguf_types.h says what becomes of each tensor kind, gguf_names.h holds
// the architectures; gguf_text.h has the tokenizer. Engine thread only (it makes MLX arrays).
#pragma once

#include "models/config.h"
#include "nn/weights.h"

#include <string>
#include <unordered_map>
#include <vector>

namespace parallm {

struct GgufFile {
  Config config;
  std::unordered_map<std::string, mx::array> arrays;
  Quantizations quantizations;
  /** What activations and KV had best be in: most of the dense weights', where most weights are dense; else float16,
   * or bfloat16 where the architecture needs its range. */
  mx::Dtype dtype = mx::float16;
  std::vector<int32_t> eos_ids; // of every kind
  int32_t bos_id = -1; // -1: none
};

/** Any one part of a file that is split into several stands for all of them. Errors: invalid, for a file that is no
 * GGUF, is cut off or corrupt, or of an architecture or a tensor kind that can't be opened. */
GgufFile read_gguf(const std::string& path);

} // namespace parallm
