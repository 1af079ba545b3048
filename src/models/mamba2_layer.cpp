#include "models/mamba2_layer.h"

#include "base/error.h"
#include "nn/activation.h"

#include <cmath>

namespace parallm {

namespace {

Mamba2Shape checked(const Mamba2Shape& shape) {
  if (shape.heads % shape.groups != 0) {
    fail(
        Kind::invalid, "[mamba2] the heads must be a multiple of the groups; got {} and {}", shape.heads, shape.groups);
  }
  return shape;
}

} // namespace

std::pair<float, float> time_step_limit(const Config& config) {
  auto limits = config.numbers("time_step_limit");
  if (limits.size() != 2 || limits[0] > limits[1]) {
    fail(Kind::invalid, "[mamba2] 'time_step_limit' must hold the least and the most; got {} numbers", limits.size());
  }
  return {limits[0], limits[1]};
}

Mamba2Layer::Mamba2Layer(const Mamba2Shape& shape, Weights& weights, const std::string& name)
    : shape_(checked(shape)),
      in_proj(
          weights,
          name + ".in_proj",
          shape.inner() + shape.conv_channels() + shape.heads,
          shape.hidden,
          shape.bias),
      conv1d(weights, name + ".conv1d", shape.conv_channels(), shape.kernel, shape.conv_bias, true),
      dt_bias(weights.take(name + ".dt_bias", {shape.heads}, mx::float32)),
      a_(mx::negative(mx::exp(weights.take(name + ".A_log", {shape.heads}, mx::float32)))),
      D(weights.take(name + ".D", {shape.heads}, mx::float32)) {}

Mamba2Layer::Out Mamba2Layer::operator()(const mx::array& x, Cache& cache) const {
  int inner = shape_.inner(), keys = shape_.groups * shape_.state_size;
  auto parts = mx::split(in_proj(x), mx::Shape{inner, inner + shape_.conv_channels()}, 1);
  auto dt = softplus(mx::astype(parts[2], mx::float32) + dt_bias);
  if (shape_.least_dt > 0) {
    dt = mx::maximum(dt, mx::array(shape_.least_dt));
  }
  if (std::isfinite(shape_.most_dt)) {
    dt = mx::minimum(dt, mx::array(shape_.most_dt));
  }
  auto y = cache.recur({parts[1], dt, dt * a_}, [&](auto& in, auto& states) {
    auto mixed = mx::split(conv1d(in[0], states[0]), mx::Shape{inner, inner + keys}, 2);
    int rows = in[0].shape(0), length = in[0].shape(1);
    auto heads = [&](const mx::array& part, int count, int dim) {
      return mx::reshape(part, {rows, length, count, dim});
    };
    LinearRecurrence recurrence{
        .q = heads(mixed[2], shape_.groups, shape_.state_size),
        .k = heads(mixed[1], shape_.groups, shape_.state_size),
        .v = heads(mixed[0], shape_.heads, shape_.head_dim),
        .log_decay = in[2],
        .beta = in[1],
        .skip = D};
    return mx::flatten(linear_recurrence(recurrence, states[1]), 2, 3);
  });
  return {y, parts[0]};
}

CacheSpec Mamba2Layer::cache_spec(const Mamba2Shape& shape, mx::Dtype dtype) {
  return {
      .states = {
          {{shape.kernel - 1, shape.conv_channels()}, dtype},
          {{shape.heads, shape.head_dim, shape.state_size}, mx::float32}}};
}

} // namespace parallm
