#include "models/mamba_layer.h"

#include "nn/activation.h"

namespace parallm {

int time_step_rank(const Config& config, const char* field, int hidden) {
  bool given = config.has(field) && config.json.at(field).is_number();
  if (!given && config.text(field, "auto") == "auto") {
    return (hidden + 15) / 16;
  }
  return config.count(field);
}

MambaLayer::MambaLayer(const MambaShape& shape, Weights& weights, const std::string& name, Norms norms)
    : shape_(shape),
      norms_(std::move(norms)),
      in_proj(weights, name + ".in_proj", 2 * shape.inner, shape.hidden, shape.bias),
      conv1d(weights, name + ".conv1d", shape.inner, shape.kernel, shape.conv_bias, true),
      x_proj(weights, name + ".x_proj", shape.rank + 2 * shape.state_size, shape.inner),
      dt_proj(weights, name + ".dt_proj", shape.inner, shape.rank, true),
      a_(mx::negative(mx::exp(weights.take(name + ".A_log", {shape.inner, shape.state_size}, mx::float32)))),
      D(weights.take(name + ".D", {shape.inner}, mx::float32)),
      out_proj(weights, name + ".out_proj", shape.hidden, shape.inner, shape.bias) {}

mx::array MambaLayer::scan(const mx::array& x, std::vector<mx::array>& states) const {
  int rows = x.shape(0), length = x.shape(1);
  auto convolved = conv1d(x, states[0]);
  auto parts =
      mx::split(x_proj(mx::flatten(convolved, 0, 1)), mx::Shape{shape_.rank, shape_.rank + shape_.state_size}, 1);
  auto normed = [](const Norm& norm, const mx::array& part) { return norm ? norm(part) : part; };
  auto by_row = [&](const mx::array& part) { return mx::reshape(part, {rows, length, part.shape(1)}); };
  auto dt = softplus(mx::astype(dt_proj(normed(norms_.dt, parts[0])), mx::float32));
  auto b = normed(norms_.b, parts[1]), c = normed(norms_.c, parts[2]);
  return selective_scan(convolved, by_row(dt), a_, by_row(b), by_row(c), D, states[1]);
}

mx::array MambaLayer::operator()(const mx::array& x, Cache& cache) const {
  auto halves = mx::split(in_proj(x), 2, 1);
  auto y = cache.recur({halves[0]}, [&](auto& in, auto& states) { return scan(in[0], states); });
  return out_proj(swiglu(halves[1], y));
}

CacheSpec MambaLayer::cache_spec(const MambaShape& shape, mx::Dtype dtype) {
  return {.states = {{{shape.kernel - 1, shape.inner}, dtype}, {{shape.inner, shape.state_size}, mx::float32}}};
}

} // namespace parallm
