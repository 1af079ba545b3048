// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of
// all heads are one small vector a token. The matrices that would unfold it are
// absorbed into the queries and the outputs, so that the cache holds the vector
// alone, as one kv head. Engine thread only.
#pragma once

#include "models/decoder.h"
#include "nn/moe.h"
#include "nn/norm.h"

#include <optional>

namespace parallm {

/** config.json's fields by their names there. */
struct LatentArgs {
  explicit LatentArgs(const Config& config);

  int hidden_size;
  int num_attention_heads;
  int q_lora_rank; // 0: queries aren't compressed
  int kv_lora_rank;
  int qk_nope_head_dim;
  int qk_rope_head_dim;
  int v_head_dim;
  bool attention_bias;
  float norm_eps = 1e-6f; // of the latents
  float scale; // of q.k, YaRN's part in it
  float q_scale = 1; // on queries
  float kv_scale = 1; // on latents
  std::string output = "o_proj"; // what the output layer is called

  // DeepSeek-V3.2's indexer, which chooses the positions that a token attends to; 0: there is none.
  int index_n_heads = 0;
  int index_head_dim = 0;
  int index_topk = 0;

  CacheSpec cache() const {
    return {1, qk_rope_head_dim + kv_lora_rank, kv_lora_rank, {}, index_head_dim};
  }
};

/** The "lightning indexer" of DeepSeek-V3.2. */
class Indexer {
 public:
  Indexer(Weights& weights, const std::string& name, const LatentArgs& args, const Rope* rope);

  /** x [T,D], narrow [T,q_lora_rank] the compressed queries. */
  KeySelector operator()(const mx::array& x, const mx::array& narrow) const;

 private:
  int heads_;
  int dims_;
  int choices_;
  const Rope* rope_;
  Linear wq_b;
  Linear wk;
  LayerNorm k_norm;
  Linear weights_proj;
};

class LatentAttention {
 public:
  /** `index_rope`: the indexer's, where there is one. */
  LatentAttention(
      Weights& weights,
      const std::string& name,
      const LatentArgs& args,
      const Rope* rope,
      const Rope* index_rope = nullptr);

  /** x [T,D] -> [T,D]. */
  mx::array operator()(const mx::array& x, Cache& cache) const;
  /** Before the output layer: [T,H,v_head_dim]. */
  mx::array attend(const mx::array& x, Cache& cache) const;
  mx::array out(const mx::array& attended) const;

 private:
  LatentArgs args_;
  Attention how_;
  std::optional<Linear> q_proj; // or the three
  std::optional<Linear> q_a_proj;
  std::optional<RMSNorm> q_a_layernorm;
  std::optional<Linear> q_b_proj;
  Linear kv_a_proj_with_mqa;
  RMSNorm kv_a_layernorm;
  MultiLinear embed_q; // [H, kv_lora_rank, nope]
  MultiLinear unembed_out; // [H, v_head_dim, kv_lora_rank]
  Linear o_proj;
  std::optional<Indexer> indexer;
};

/** `<name>.kv_b_proj`, one matrix for keys and values as checkpoints of Hugging
 * Face have it, to embed_q and unembed_out. A quantized one is `quantized_again`
 * (as mlx-lm does where it splits it), else it stays dense, which is as exact as
 * it was. */
void split_kv_b(Weights& weights, const std::string& name, const LatentArgs& args, bool quantized_again);

/** Before `split_kv_b`, where mlx-lm's model has kv_b_proj itself: a recording
 * keeps it. */
void record_kv_b(Weights& weights, const std::string& name, const LatentArgs& args);

} // namespace parallm
