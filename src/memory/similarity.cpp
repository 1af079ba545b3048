#include "memory/similarity.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace parallm {

namespace {

constexpr size_t lanes = 8; // sums apart, so that the compiler may use SIMD without reordering one sum

float dot(std::span<const float> a, std::span<const float> b) {
  std::array<float, lanes> sums{};
  size_t i = 0;
  for (; i + lanes <= a.size(); i += lanes) {
    for (size_t lane = 0; lane < lanes; ++lane) {
      sums[lane] += a[i + lane] * b[i + lane];
    }
  }
  float sum = 0;
  for (; i < a.size(); ++i) {
    sum += a[i] * b[i];
  }
  for (const float part : sums) {
    sum += part;
  }
  return sum;
}

} // namespace

float cosine(std::span<const float> a, std::span<const float> b) {
  const double lengths = std::sqrt(static_cast<double>(dot(a, a)) * dot(b, b));
  return lengths > 0 ? std::clamp(static_cast<float>(dot(a, b) / lengths), -1.0f, 1.0f) : 0.0f;
}

std::vector<float> unit(std::span<const float> vector) {
  double squares = 0;
  for (const float x : vector) {
    squares += static_cast<double>(x) * x;
  }
  const double scale = squares > 0 ? 1 / std::sqrt(squares) : 0;
  std::vector<float> out;
  out.reserve(vector.size());
  for (const float x : vector) {
    out.push_back(static_cast<float>(x * scale));
  }
  return out;
}

} // namespace parallm
