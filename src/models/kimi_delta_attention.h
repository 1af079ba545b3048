// Kimi Delta Attention (arXiv 2510.26692): a gated delta rule that forgets each
// key's dim at its own rate. Engine thread only.
#pragma once

#include "kv/cache.h"
#include "models/config.h"
#include "nn/linear.h"
#include "nn/norm.h"
#include "nn/recurrent.h"

#include <optional>
#include <string>
#include <vector>

namespace parallm {

struct KimiDeltaArgs {
  int hidden; // of the model
  int heads;
  int head_dim;
  int kernel; // of the convolutions
  float eps; // of the norm
  // What models change.
  bool narrow_decay = true; // the decay goes through a narrow layer
  bool narrow_gate = true; // and so does the output's gate
  bool fused = false; // q, k and v are one layer, `qkv`, with one convolution
  bool flat = false; // A_log is [heads] instead of [1,1,heads,1]
  std::optional<float> least_log_decay = {}; // decays are at least its exp; nothing: they have no bound
  std::string conv = "_conv.conv"; // the convolutions' names, behind q, k and v

  int width() const {
    return heads * head_dim;
  }
};

/** config.json with DeepSeek's names for the fields that Kimi's models share with it. */
Config kimi_with_deepseek_names(const Config& given);

class KimiDeltaAttention {
 public:
  KimiDeltaAttention(const KimiDeltaArgs& args, Weights& weights, const std::string& name);

  /** x [T,hidden] -> [T,hidden]. */
  mx::array operator()(const mx::array& x, Cache& cache) const;

  /** What each layer keeps; `dtype`: the activations'. */
  static CacheSpec cache_spec(const KimiDeltaArgs& args, mx::Dtype dtype);

 private:
  /** A layer, or two with a narrow place between. */
  struct Gate {
    Gate(Weights& weights, const std::string& name, const KimiDeltaArgs& args, bool narrow);
    mx::array operator()(const mx::array& x) const;

    std::optional<Linear> to_narrow;
    Linear to_wide;
  };

  mx::array log_decay(const mx::array& x) const; // float32 [T,H,head_dim]
  mx::array by_head(const mx::array& x) const;

  KimiDeltaArgs args_;
  std::vector<Linear> projections_; // q, k and v, or one of all
  std::vector<CausalConv> convs_; // of the same
  Gate f_; // the decay
  Gate g_; // the output's gate
  Linear b_proj; // beta: how much of an error is corrected
  mx::array a_; // [heads] exp(A_log)
  mx::array dt_bias; // [width]
  RMSNorm o_norm;
  Linear o_proj;
};

} // namespace parallm
