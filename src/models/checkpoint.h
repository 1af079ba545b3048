// Files to a model's parts: a folder with config.json and model*.safetensors
// (Hugging Face's or MLX's layout, sharded or not, quantized or not), or a
// .gguf file. Engine thread only (it holds MLX arrays).
//
// On a CPU, loading peaks at no more than 1.15 times the weights: VmHWM of a
// process of its own, less what it has with a tiny model, after loading and
// after a step that reads every weight (tests/tensor/safetensors_test.cpp).
#pragma once

#include "models/config.h"
#include "models/gguf.h"
#include "nn/weights.h"

#include <optional>
#include <string>
#include <vector>

namespace parallm {

struct CheckpointOptions {
  /** The activations' and the KV's. Without it: the checkpoint's own; on a CPU,
   * where MLX emulates 16-bit floats, float32 activations and the KV in the
   * checkpoint's own. */
  std::optional<mx::Dtype> dtype;
};

/** What generation_config.json says a request that is silent gets. */
struct GenerationDefaults {
  std::optional<bool> do_sample;
  std::optional<float> temperature;
  std::optional<float> top_p;
  std::optional<int> top_k;
  std::optional<float> repetition_penalty;
};

struct Checkpoint {
  Config config;
  Weights weights;
  std::vector<int32_t> eos_ids; // generation_config.json's, else config.json's; sorted
  int32_t bos_id = -1; // -1: none
  mx::Dtype dtype; // of the activations
  mx::Dtype kv_dtype;
  mx::Dtype stored_dtype; // of the checkpoint's own floats
  GenerationDefaults generation;
};

/** Errors: invalid or not_found, with the file's name. */
Checkpoint open_checkpoint(const std::string& path, const CheckpointOptions& options = {});

} // namespace parallm
