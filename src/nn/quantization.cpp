#include "nn/quantization.h"

#include "base/error.h"

#include <fmt/ranges.h>

#include <algorithm>

namespace parallm {

namespace {

// mlx/ops.h, `quantize`; the first of each list is the default.
const struct {
  const char* mode;
  std::vector<int> group_sizes;
  std::vector<int> bits;
} modes[] = {
    {"affine", {64, 32, 128}, {4, 2, 3, 5, 6, 8}},
    {"mxfp4", {32}, {4}},
    {"nvfp4", {16}, {4}},
    {"mxfp8", {32}, {8}},
};

int one_of(
    const std::string& where,
    const char* what,
    const std::string& mode,
    const std::vector<int>& known,
    std::optional<int> asked) {
  const int value = asked.value_or(known.front());
  if (std::find(known.begin(), known.end(), value) == known.end()) {
    fail(
        Kind::invalid,
        "{} '{}' of mode {} must be one of {}; got {}",
        where,
        what,
        mode,
        fmt::join(known, ", "),
        value);
  }
  return value;
}

} // namespace

std::vector<std::string> quantization_modes() {
  std::vector<std::string> names;
  for (const auto& known : modes) {
    names.emplace_back(known.mode);
  }
  return names;
}

Quantization make_quantization(
    const std::string& where,
    const std::string& mode,
    std::optional<int> group,
    std::optional<int> bits) {
  for (const auto& known : modes) {
    if (mode == known.mode) {
      return {
          one_of(where, "group_size", mode, known.group_sizes, group),
          one_of(where, "bits", mode, known.bits, bits),
          mode};
    }
  }
  fail(Kind::invalid, "{} 'mode' must be one of {}; got '{}'", where, fmt::join(quantization_modes(), ", "), mode);
}

std::optional<Quantization> infer_quantization(int words, int groups, int inputs, bool byte_scales) {
  if (inputs <= 0 || groups <= 0 || inputs % groups != 0 || words * 32 % inputs != 0) {
    return {};
  }
  const int group_size = inputs / groups, bits = words * 32 / inputs;
  const auto has = [](const std::vector<int>& list, int value) {
    return std::find(list.begin(), list.end(), value) != list.end();
  };
  for (const auto& known : modes) {
    const bool affine = std::string_view(known.mode) == "affine";
    if (affine != byte_scales && has(known.group_sizes, group_size) && has(known.bits, bits)) {
      return Quantization{group_size, bits, known.mode};
    }
  }
  return {};
}

} // namespace parallm
