// The state space layer of Mamba-2 (arXiv 2405.21060, "SSD") up to its gate,
// which models apply each in their own way. Engine thread only.
#pragma once

#include "kv/cache.h"
#include "models/config.h"
#include "nn/linear.h"
#include "nn/recurrent.h"

#include <limits>

namespace parallm {

struct Mamba2Shape {
  int hidden; // of the model
  int heads;
  int head_dim;
  int state_size;
  int groups; // of heads that share B and C
  int kernel; // of the convolution
  bool bias = false; // in_proj has one
  bool conv_bias = true;
  float least_dt = 0;
  float most_dt = std::numeric_limits<float>::infinity();

  int inner() const {
    return heads * head_dim;
  }
  int conv_channels() const {
    return inner() + 2 * groups * state_size;
  }
};

/** config.json's `time_step_limit`: the least and the most dt. */
std::pair<float, float> time_step_limit(const Config& config);

class Mamba2Layer {
 public:
  Mamba2Layer(const Mamba2Shape& shape, Weights& weights, const std::string& name);

  struct Out {
    mx::array y; // [T,inner]
    mx::array gate; // [T,inner]
  };
  /** x [T,hidden]. */
  Out operator()(const mx::array& x, Cache& cache) const;

  /** What each layer keeps; `dtype`: the activations'. */
  static CacheSpec cache_spec(const Mamba2Shape& shape, mx::Dtype dtype);

 private:
  Mamba2Shape shape_;
  Linear in_proj;
  CausalConv conv1d;
  mx::array dt_bias; // [heads]
  mx::array a_; // [heads] -exp(A_log)
  mx::array D; // [heads]
};

} // namespace parallm
