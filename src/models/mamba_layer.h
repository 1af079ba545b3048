// The layer of Mamba (arXiv 2312.00752, "S6"): a convolution, then a state space
// whose step and in- and output depend on the token. Engine thread only.
#pragma once

#include "kv/cache.h"
#include "models/config.h"
#include "nn/linear.h"
#include "nn/recurrent.h"

#include <functional>

namespace parallm {

struct MambaShape {
  int hidden; // of the model
  int inner;
  int state_size;
  int rank; // of dt's projection
  int kernel; // of the convolution
  bool bias = false; // in_proj and out_proj have one
  bool conv_bias = true;
};

/** `field` of config.json: a rank, or "auto", a sixteenth of the hidden size. */
int time_step_rank(const Config& config, const char* field, int hidden);

class MambaLayer {
 public:
  /** What some models do with dt, b and c before they are used. */
  using Norm = std::function<mx::array(const mx::array&)>;
  struct Norms {
    Norm dt, b, c;
  };

  MambaLayer(const MambaShape& shape, Weights& weights, const std::string& name, Norms norms = {});

  /** x [T,hidden] -> [T,hidden]. */
  mx::array operator()(const mx::array& x, Cache& cache) const;

  /** What each layer keeps; `dtype`: the activations'. */
  static CacheSpec cache_spec(const MambaShape& shape, mx::Dtype dtype);

 private:
  mx::array scan(const mx::array& x, std::vector<mx::array>& states) const;

  MambaShape shape_;
  Norms norms_;
  Linear in_proj;
  CausalConv conv1d;
  Linear x_proj;
  Linear dt_proj;
  mx::array a_; // [inner,state_size] -exp(A_log)
  mx::array D; // [inner]
  Linear out_proj;
};

} // namespace parallm
