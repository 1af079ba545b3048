// Per-layer embeddings (Gemma 3n and 4): beside the hidden state each layer gets a
// small vector of the token, looked up and projected once a step. Engine thread
// only.
#pragma once

#include "models/decoder.h"
#include "nn/norm.h"

#include <memory>
#include <optional>

namespace parallm {

class PerLayerInputs {
 public:
  /** `name`: what the model's own tensors begin with, "model." or longer. */
  PerLayerInputs(const Config& config, Weights& weights, const std::string& name, float eps);

  /** ids [T], h [T,hidden_size] the scaled embeddings -> [T,layers,dims]. */
  mx::array operator()(const mx::array& ids, const mx::array& h) const;

 private:
  int layers_;
  int dims_;
  int count_; // of the table's tokens; those past it take the first one's row
  float projection_scale_;
  Embedding embed_tokens_per_layer;
  Linear per_layer_model_projection;
  RMSNorm per_layer_projection_norm;
};

/** A layer's way to mix its vector in: norm(projection(gelu(gate(x)) * vector)). */
class PerLayerGate {
 public:
  PerLayerGate(Weights& weights, const std::string& name, int hidden, int dims, float eps);

  /** x [T,hidden], all [T,layers,dims] -> [T,hidden]. */
  mx::array operator()(const mx::array& x, const mx::array& all, int layer) const;

 private:
  Linear per_layer_input_gate;
  Linear per_layer_projection;
  RMSNorm post_per_layer_input_norm;
};

/** A decoder whose blocks find the step's vectors in `step`; `embedded` puts them
 * there. */
class PerLayerDecoder : public Decoder {
 public:
  struct Step {
    std::optional<mx::array> ids;
    std::optional<mx::array> per_layer;
  };
  using Decoder::Decoder;
  std::shared_ptr<Step> step = std::make_shared<Step>();

  mx::array hidden(const mx::array& ids, Caches& caches) override {
    step->ids = ids;
    return Decoder::hidden(ids, caches);
  }
};

} // namespace parallm
