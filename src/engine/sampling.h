// How one row's next token is chosen. Plain data, no tensors: the API, the command line, the validation and the docs
// loop over `sampling_fields()`, so that a new number is a field here, a row in sampling.cpp and its maths in
// sampler.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace parallm {

struct Sampling {
  // Order of effect (vLLM's): penalties, logit_bias, banned tokens, temperature, min_p, top_k, top_p, draw.
  float temperature = 1.0f; // 0: greedy
  float top_p = 1.0f; // smallest set whose mass reaches top_p; the token that crosses it stays
  int top_k = 0; // 0: off
  float min_p = 0.0f; // keep tokens with p >= min_p * p_max
  float repetition_penalty = 1.0f; // over prompt and output (CTRL, arXiv 1909.05858): l > 0 ? l / r : l * r
  float presence_penalty = 0.0f; // over output only (OpenAI's definition)
  float frequency_penalty = 0.0f;
  int min_tokens = 0; // no end token before that many
  std::vector<std::pair<int32_t, float>> logit_bias; // token id, added to its logit
  std::vector<int32_t> stop_token_ids; // besides the model's own end tokens
  bool ignore_eos = false;
  uint64_t seed = 0; // the API draws one where the caller gave none
  int logprobs = -1; // -1: none; 0: the chosen token's; k: and the k most likely
  bool prompt_logprobs = false; // score the prompt's tokens too

  bool operator==(const Sampling&) const = default;
};

/** One number of Sampling as users write it: name, place, closed range, help. */
struct SamplingField {
  std::string_view name;
  std::variant<float Sampling::*, int Sampling::*> member;
  double min;
  double max;
  bool min_open; // the least value itself is not allowed
  std::string_view help;
};

std::span<const SamplingField> sampling_fields();

/** Every field of the table against its range. Errors: invalid, naming the field. */
void check_ranges(const Sampling& sampling);

/** Uniform number in [0, 1) for a row's `index`-th token: Philox4x32-10 (Salmon et al., SC'11) of (seed, index), so
 *  that a seed gives the same text whatever else runs. */
float draw(uint64_t seed, uint64_t index);

} // namespace parallm
