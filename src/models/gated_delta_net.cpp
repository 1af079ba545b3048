#include "models/gated_delta_net.h"

#include "base/error.h"
#include "nn/activation.h"

#include <cmath>

namespace parallm {

namespace {

DeltaNetShape checked(const DeltaNetShape& shape) {
  if (shape.value_heads % shape.key_heads != 0) {
    fail(
        Kind::invalid,
        "[gated_delta_net] 'linear_num_value_heads' must be a multiple of 'linear_num_key_heads'; got {} and {}",
        shape.value_heads,
        shape.key_heads);
  }
  return shape;
}

} // namespace

mx::array unit_length(const mx::array& x, float scale) {
  float root = std::sqrt(float(x.shape(-1)));
  return rms_norm(x, 1e-6f / float(x.shape(-1))) * mx::array(scale / root, x.dtype());
}

GatedDeltaNet::GatedDeltaNet(const DeltaNetShape& shape, Weights& weights, const std::string& name)
    : shape_(checked(shape)),
      in_proj_qkv(weights, name + ".in_proj_qkv", shape.conv_channels(), shape.hidden),
      in_proj_z(weights, name + ".in_proj_z", shape.values(), shape.hidden),
      in_proj_b(weights, name + ".in_proj_b", shape.value_heads, shape.hidden),
      in_proj_a(weights, name + ".in_proj_a", shape.value_heads, shape.hidden),
      conv1d(weights, name + ".conv1d", shape.conv_channels(), shape.kernel, false, true),
      dt_bias(weights.take(name + ".dt_bias", {shape.value_heads}, mx::float32)),
      a_(mx::negative(mx::exp(weights.take(name + ".A_log", {shape.value_heads}, mx::float32)))),
      norm(weights, name + ".norm", shape.value_dim, shape.eps),
      out_proj(weights, name + ".out_proj", shape.hidden, shape.values()) {}

mx::array GatedDeltaNet::operator()(const mx::array& x, Cache& cache) const {
  auto log_decay = a_ * softplus(mx::astype(in_proj_a(x), mx::float32) + dt_bias);
  auto beta = mx::sigmoid(mx::astype(in_proj_b(x), mx::float32));
  auto out = cache.recur({in_proj_qkv(x), log_decay, beta}, [&](auto& in, auto& states) {
    auto mixed = mx::split(conv1d(in[0], states[0]), mx::Shape{shape_.keys(), 2 * shape_.keys()}, 2);
    int rows = in[0].shape(0), length = in[0].shape(1);
    auto heads = [&](const mx::array& part, int count, int dim) {
      return mx::reshape(part, {rows, length, count, dim});
    };
    LinearRecurrence recurrence{
        .q = unit_length(heads(mixed[0], shape_.key_heads, shape_.key_dim), 1 / std::sqrt(float(shape_.key_dim))),
        .k = unit_length(heads(mixed[1], shape_.key_heads, shape_.key_dim), 1),
        .v = heads(mixed[2], shape_.value_heads, shape_.value_dim),
        .log_decay = in[1],
        .beta = in[2],
        .delta = true};
    return linear_recurrence(recurrence, states[1]);
  });
  auto gate = mx::reshape(in_proj_z(x), out.shape());
  return out_proj(mx::flatten(swiglu(gate, norm(out)), 1, 2));
}

CacheSpec GatedDeltaNet::cache_spec(const DeltaNetShape& shape, mx::Dtype dtype) {
  return {
      .states = {
          {{shape.kernel - 1, shape.conv_channels()}, dtype},
          {{shape.value_heads, shape.value_dim, shape.key_dim}, mx::float32}}};
}

} // namespace parallm
