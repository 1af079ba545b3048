// The decoder that most models with experts are: norms before attention and
// feed-forward, grouped heads (arXiv 2305.13245), under the usual names. Engine
// thread only.
#pragma once

#include "models/attention.h"
#include "nn/norm.h"

#include <memory>
#include <optional>

namespace parallm {

/** What q and k are normed over, by `q_norm` and `k_norm`, before RoPE. */
enum class HeadNorms { none, each_head, all_heads };

struct GroupedAttentionArgs {
  Sizes sizes;
  bool bias = false; // q, k and v must have one (each has where it exists)
  bool output_bias = false;
  HeadNorms norms = HeadNorms::none;
  float norm_eps = 1e-6f;
  ProjectionNames names = {};
};

class GroupedAttention {
 public:
  GroupedAttention(Weights& weights, const std::string& name, const GroupedAttentionArgs& args, Attention how);

  /** x [T,D] -> [T,D]. */
  mx::array operator()(const mx::array& x, Cache& cache) const;
  /** Before the output projection: [T,H,head_dim]. */
  mx::array attend(const mx::array& x, Cache& cache) const;
  mx::array out(const mx::array& attended) const;

 private:
  mx::array normed(const mx::array& x, const RMSNorm& norm) const;

  HeadNorms norms_;
  Attention how_;
  Projections project_;
  std::optional<RMSNorm> q_norm;
  std::optional<RMSNorm> k_norm;
};

/** h = x + attend(norm(x)), then h + feed_forward(norm(h)), by RMS norms.
 * `residual_scale`: on what is added (Granite, MiniCPM). */
Decoder::Block pre_norm_block(
    Weights& weights,
    const std::string& name,
    int dims,
    float eps,
    const Decoder::Block& attend,
    const Decoder::Map& feed_forward,
    float residual_scale = 1);

/** model.embed_tokens, model.norm and lm_head; blocks are the caller's. */
std::unique_ptr<Decoder> usual_decoder(const Config& config, Weights& weights, int dims, float eps);

/** "model.layers.<i>" */
std::string layer_name(int layer);

} // namespace parallm
