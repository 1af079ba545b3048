#include "nn/rope.h"

#include "base/error.h"
#include "nn/host_array.h"

#include <cmath>

namespace parallm {

namespace {

/** The base at a sequence's length (transformers' modeling_rope_utils.py,
 * _compute_dynamic_ntk_parameters). */
double dynamic_base(const Rope& rope, int length) {
  double growth = rope.factor * length / rope.original_length;
  return rope.base * std::pow(growth - (rope.factor - 1), rope.dims / (rope.dims - 2.0));
}

} // namespace

std::pair<mx::array, mx::array> Rope::tables(const std::vector<int>& positions, const std::vector<int>& lengths) const {
  check(positions.size() == lengths.size(), "rope: a length a position");
  int count = positions.size();
  int half = dims / 2;
  std::vector<float> cos(size_t(count) * half);
  std::vector<float> sin(size_t(count) * half);
  for (int t = 0; t < count; ++t) {
    bool grown = original_length > 0 && lengths[t] > original_length;
    double grown_base = grown ? dynamic_base(*this, lengths[t]) : 0;
    for (int i = 0; i < half; ++i) {
      double frequency = grown ? std::pow(grown_base, -2.0 * i / dims) : inverse_frequencies[i];
      double angle = positions[t] * frequency;
      cos[size_t(t) * half + i] = magnitude * std::cos(angle);
      sin[size_t(t) * half + i] = magnitude * std::sin(angle);
    }
  }
  mx::Shape shape{count, half};
  return {host_array(cos, shape), host_array(sin, shape)};
}

mx::array Rope::rotate(const mx::array& x, const mx::array& cos, const mx::array& sin) const {
  int count = x.shape(0);
  int heads = x.shape(1);
  int half = dims / 2;
  auto c = mx::expand_dims(cos, 1); // [T,1,dims/2]
  auto s = mx::expand_dims(sin, 1);
  auto turned = mx::slice(x, {0, 0, 0}, {count, heads, dims});
  if (traditional) {
    turned = mx::reshape(turned, {count, heads, half, 2});
    auto a = mx::take(turned, 0, 3);
    auto b = mx::take(turned, 1, 3);
    turned = mx::stack({a * c - b * s, b * c + a * s}, 3);
    turned = mx::reshape(turned, {count, heads, dims});
  } else {
    auto a = mx::slice(turned, {0, 0, 0}, {count, heads, half});
    auto b = mx::slice(turned, {0, 0, half}, {count, heads, dims});
    turned = mx::concatenate({a * c - b * s, b * c + a * s}, 2);
  }
  turned = mx::astype(turned, x.dtype());
  if (dims == x.shape(2)) {
    return turned;
  }
  auto rest = mx::slice(x, {0, 0, dims}, x.shape());
  return mx::concatenate({turned, rest}, 2);
}

} // namespace parallm
