// Gated DeltaNet (arXiv 2412.06464): linear attention whose state forgets by a
// gate and is corrected by the delta rule. Engine thread only.
#pragma once

#include "kv/cache.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/recurrent.h"

namespace parallm {

struct DeltaNetShape {
  int hidden; // of the model
  int key_heads;
  int value_heads; // a multiple of key_heads
  int key_dim; // of a head
  int value_dim; // of a head
  int kernel; // of the convolution
  float eps; // of the norm

  int keys() const {
    return key_heads * key_dim;
  }
  int values() const {
    return value_heads * value_dim;
  }
  int conv_channels() const {
    return 2 * keys() + values();
  }
};

/** x / |x| * scale over the last axis; eps is added to |x|². */
mx::array unit_length(const mx::array& x, float scale);

class GatedDeltaNet {
 public:
  GatedDeltaNet(const DeltaNetShape& shape, Weights& weights, const std::string& name);

  /** x [T,hidden] -> [T,hidden]. */
  mx::array operator()(const mx::array& x, Cache& cache) const;

  /** What each layer keeps; `dtype`: the activations'. */
  static CacheSpec cache_spec(const DeltaNetShape& shape, mx::Dtype dtype);

 private:
  DeltaNetShape shape_;
  Linear in_proj_qkv;
  Linear in_proj_z; // the output's gate
  Linear in_proj_b; // beta: how much of an error is corrected
  Linear in_proj_a; // the decay
  CausalConv conv1d;
  mx::array dt_bias; // [value_heads]
  mx::array a_; // [value_heads] -exp(A_log)
  RMSNorm norm; // of a head's values
  Linear out_proj;
};

} // namespace parallm
