// The feed-forward blocks of most decoders. Engine thread only.
#pragma once

#include "nn/activation.h"
#include "nn/linear.h"

namespace parallm {

/** What checkpoints call the layers. */
struct MLPNames {
  std::string gate = "gate_proj";
  std::string up = "up_proj";
  std::string down = "down_proj";
};

/** down_proj(act(gate_proj(x)) * up_proj(x)) (Shazeer, arXiv 2002.05202). */
class GatedMLP {
 public:
  GatedMLP(
      Weights& weights,
      const std::string& name,
      int dims,
      int hidden,
      Activation act = silu,
      bool bias = false,
      const MLPNames& names = {});

  /** x [T,dims] -> [T,dims]. */
  mx::array operator()(const mx::array& x) const;

 private:
  Activation act_;
  Linear gate_proj;
  Linear up_proj;
  Linear down_proj;
};

/** down_proj(act(gate_proj(x), up_proj(x))), for what clamps or bounds both. */
class GluMLP {
 public:
  GluMLP(Weights& weights, const std::string& name, int dims, int hidden, GluAct act);

  mx::array operator()(const mx::array& x) const;

 private:
  GluAct act_;
  Linear gate_proj;
  Linear up_proj;
  Linear down_proj;
};

/** GatedMLP with gate and up as one layer, `gate_up_proj`, gate first. */
class FusedGatedMLP {
 public:
  FusedGatedMLP(Weights& weights, const std::string& name, int dims, int hidden, Activation act = silu);

  mx::array operator()(const mx::array& x) const;

 private:
  Activation act_;
  Linear gate_up_proj;
  Linear down_proj;
};

/** down(act(up(x))). */
class MLP {
 public:
  MLP(Weights& weights,
      const std::string& name,
      int dims,
      int hidden,
      Activation act,
      bool bias,
      const MLPNames& names);

  mx::array operator()(const mx::array& x) const;

 private:
  Activation act_;
  Linear up;
  Linear down;
};

} // namespace parallm
