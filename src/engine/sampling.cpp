#include "engine/sampling.h"

#include "base/error.h"

#include <array>
#include <limits>

namespace parallm {

std::span<const SamplingField> sampling_fields() {
  constexpr double many = std::numeric_limits<int>::max();
  static const std::array fields = {
      SamplingField{"temperature", &Sampling::temperature, 0, 100, false, "0 takes the most likely token"},
      SamplingField{"top_p", &Sampling::top_p, 0, 1, true, "keep the most likely tokens whose mass reaches this"},
      SamplingField{"top_k", &Sampling::top_k, 0, many, false, "keep this many most likely tokens; 0 keeps all"},
      SamplingField{
          "min_p", &Sampling::min_p, 0, 1, false, "keep tokens at least this likely, relative to the most likely one"},
      SamplingField{
          "repetition_penalty",
          &Sampling::repetition_penalty,
          0,
          100,
          true,
          "divides the logits of tokens seen in prompt or output"},
      SamplingField{
          "presence_penalty",
          &Sampling::presence_penalty,
          -2,
          2,
          false,
          "subtracted from the logits of tokens in the output"},
      SamplingField{
          "frequency_penalty",
          &Sampling::frequency_penalty,
          -2,
          2,
          false,
          "subtracted for each time a token is in the output"},
      SamplingField{"min_tokens", &Sampling::min_tokens, 0, many, false, "no end token before this many tokens"},
  };
  return fields;
}

void check_ranges(const Sampling& sampling) {
  for (const SamplingField& field : sampling_fields()) {
    const double value = std::visit([&](auto member) { return static_cast<double>(sampling.*member); }, field.member);
    // Written so that NaN fails it.
    if (!(value >= field.min && value <= field.max) || (field.min_open && value == field.min)) {
      fail_field(
          std::string(field.name),
          "[generate] {} must be {} {} and at most {}; got {}",
          field.name,
          field.min_open ? "over" : "at least",
          field.min,
          field.max,
          value);
    }
  }
}

float draw(uint64_t seed, uint64_t index) {
  uint32_t c[4] = {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0};
  uint32_t k[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    uint64_t a = uint64_t{0xD2511F53} * c[0];
    uint64_t b = uint64_t{0xCD9E8D57} * c[2];
    uint32_t next[4] = {
        static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0],
        static_cast<uint32_t>(b),
        static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1],
        static_cast<uint32_t>(a)};
    for (int i = 0; i < 4; ++i) {
      c[i] = next[i];
    }
    k[0] += 0x9E3779B9;
    k[1] += 0xBB67AE85;
  }
  return static_cast<float>(c[0] >> 8) * 0x1p-24f;
}

} // namespace parallm
