#include "models/per_layer_inputs.h"

#include "nn/activation.h"

#include <cmath>
#include <numbers>

namespace parallm {

PerLayerInputs::PerLayerInputs(const Config& config, Weights& weights, const std::string& name, float eps)
    : layers_(config.count("num_hidden_layers")),
      dims_(config.count("hidden_size_per_layer_input")),
      count_(config.count("vocab_size_per_layer_input")),
      projection_scale_(1 / std::sqrt(float(config.count("hidden_size")))),
      embed_tokens_per_layer(weights, name + "embed_tokens_per_layer", count_, layers_ * dims_),
      per_layer_model_projection(
          weights,
          name + "per_layer_model_projection",
          layers_ * dims_,
          config.count("hidden_size")),
      per_layer_projection_norm(weights, name + "per_layer_projection_norm", dims_, eps) {}

mx::array PerLayerInputs::operator()(const mx::array& ids, const mx::array& h) const {
  auto known = mx::where(mx::less(ids, mx::array(count_)), ids, mx::array(0));
  mx::Shape shape{ids.shape(0), layers_, dims_};
  auto looked_up = mx::reshape(scaled(embed_tokens_per_layer(known), std::sqrt(float(dims_))), shape);
  auto projected = mx::reshape(scaled(per_layer_model_projection(h), projection_scale_), shape);
  return scaled(per_layer_projection_norm(projected) + looked_up, std::numbers::sqrt2 / 2);
}

PerLayerGate::PerLayerGate(Weights& weights, const std::string& name, int hidden, int dims, float eps)
    : per_layer_input_gate(weights, name + ".per_layer_input_gate", dims, hidden),
      per_layer_projection(weights, name + ".per_layer_projection", hidden, dims),
      post_per_layer_input_norm(weights, name + ".post_per_layer_input_norm", hidden, eps) {}

mx::array PerLayerGate::operator()(const mx::array& x, const mx::array& all, int layer) const {
  auto gated = gelu_tanh(per_layer_input_gate(x)) * mx::take(all, layer, 1);
  return post_per_layer_input_norm(per_layer_projection(gated));
}

} // namespace parallm
