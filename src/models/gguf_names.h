// What GGUF calls what Hugging Face calls otherwise: the table of architectures that are opened from a GGUF file, with
// their metadata keys and tensor names. The facts are llama.cpp's (gguf-py's constants.py and tensor_mapping.py, the
// converters, and llama.cpp's own defaults where a file is silent); the names that come out are those that mlx-lm's
// models take, experts stacked. Plain data; any thread.
#pragma once

#include "models/config.h"
#include "models/gguf_reader.h"

#include <span>
#include <string>

namespace parallm {

/** A field of config.json and the metadata key that holds it, without "<architecture>." before it. */
struct GgufField {
  const char* field;
  const char* key;
};

/** A tensor's stem ("attn_q" of "blk.0.attn_q.weight") and its name within the layer there. */
struct GgufName {
  const char* stem;
  const char* name;
  bool bare = false; // without ".weight" or ".bias" there
};

struct GgufArchitecture {
  const char* architecture; // general.architecture
  const char* model_type; // ours
  /** Whether the row is for this file; null: it is where the file has no experts. */
  bool (*applies)(const GgufMetadata& metadata) = nullptr;
  /** RoPE's pairs lie side by side in q's and k's rows, and half a head apart in Hugging Face's. */
  bool paired_rope = false;
  /** Norms hold 1 + w, where Hugging Face's hold w. */
  bool norms_plus_one = false;
  /** float16 is too narrow for its activations. */
  bool wide_range = false;
  std::span<const GgufField> fields = {}; // beside those of all
  std::span<const GgufName> names = {}; // beside, and before, those of all
  const char* constants = "{}"; // JSON: fields that no key holds
  /** What is more than a copied field. */
  void (*finish)(const GgufContents& contents, boost::json::object& config) = nullptr;
};

/** Errors: invalid, listing the known ones. */
const GgufArchitecture& find_gguf_architecture(const GgufMetadata& metadata);

/** Hugging Face's name; an unknown one stays as it is, for the weights' list of extra tensors. */
std::string hf_name(const GgufArchitecture& architecture, const std::string& name);

/** What config.json would hold. */
boost::json::object gguf_config(const GgufArchitecture& architecture, const GgufContents& contents);

// For the rows' `finish`.
const GgufTensor* find_gguf_tensor(const GgufContents& contents, const std::string& name);
std::string gguf_key(const GgufMetadata& metadata, const std::string& key);

} // namespace parallm
