// The linear layers around attention: a token's vector to its query, key and
// value, by heads, and back. Engine thread only.
#pragma once

#include "models/decoder.h"
#include "nn/norm.h"

namespace parallm {

/** q [T,H,D], k and v [T,G,D]. */
struct Heads {
  mx::array q;
  mx::array k;
  mx::array v;
};

/** What checkpoints call the layers, and which of them must have a bias. */
struct ProjectionNames {
  std::string q = "q_proj";
  std::string k = "k_proj";
  std::string v = "v_proj";
  std::string o = "o_proj";
  std::string qkv = "qkv_proj"; // where the three are one
};

/** Three layers. */
class Projections {
 public:
  Projections(
      Weights& weights,
      const std::string& name,
      const Sizes& sizes,
      bool qkv_bias = false,
      bool o_bias = false,
      const ProjectionNames& names = {});

  /** x [T,hidden_size]. */
  Heads operator()(const mx::array& x) const;
  /** y [T,H,D] -> [T,hidden_size]. */
  mx::array out(const mx::array& y) const;

 private:
  int heads_;
  int kv_heads_;
  int head_dim_;
  Linear q_proj;
  Linear k_proj;
  Linear v_proj;
  Linear o_proj;
};

/** One layer that gives all queries, then all keys, then all values. */
class FusedProjections {
 public:
  FusedProjections(
      Weights& weights,
      const std::string& name,
      const Sizes& sizes,
      bool qkv_bias = false,
      bool o_bias = false,
      const ProjectionNames& names = {});

  Heads operator()(const mx::array& x) const;
  mx::array out(const mx::array& y) const;

 private:
  int heads_;
  int kv_heads_;
  int head_dim_;
  Linear qkv_proj;
  Linear o_proj;
};

/** The attention that needs no more than that. */
template <class Project = Projections>
class SelfAttention {
 public:
  SelfAttention(Project projections, Attention how) : project_(std::move(projections)), how_(std::move(how)) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project_(x);
    return project_.out(cache.attend(q, k, v, how_));
  }

 private:
  Project project_;
  Attention how_;
};

/** Attention with a norm over each head of q and k. */
template <class Norm = RMSNorm, class Project = Projections>
class NormedAttention {
 public:
  NormedAttention(Project projections, Norm q_norm, Norm k_norm, Attention how)
      : project_(std::move(projections)),
        q_norm_(std::move(q_norm)),
        k_norm_(std::move(k_norm)),
        how_(std::move(how)) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project_(x);
    return project_.out(cache.attend(q_norm_(q), k_norm_(k), v, how_));
  }

 private:
  Project project_;
  Norm q_norm_;
  Norm k_norm_;
  Attention how_;
};

/** Scores are multiplied with 1 / sqrt(dims). */
Attention scaled_attention(float dims, const Rope* rope, int window = 0);

} // namespace parallm
