// Mixture of experts: each token goes through few of many matrices. Tokens are
// sorted by expert once a block, so that a batch reads each expert's matrix once
// and no loop over rows or experts is needed. Engine thread only.
#pragma once

#include "nn/activation.h"
#include "nn/linear.h"

#include <functional>

namespace parallm {

/** The (token, choice) pairs of indices [T,k] in the order of their experts. */
struct Routing {
  explicit Routing(const mx::array& indices);

  int choices; // k
  mx::array tokens; // int32 [T*k] each pair's token
  mx::array experts; // int32 [T*k] rising
  mx::array places; // int32 [T*k] where pair t*k + c lies in that order

  /** x [T,...] -> [T*k,...], sorted. */
  mx::array gather(const mx::array& x) const;
  /** y [T*k,N], sorted -> [T,k,N]. */
  mx::array scatter(const mx::array& y) const;
};

/** `count` stacked matrices, `<name>.weight` [count, outputs, inputs], with
 * `<name>.bias` [count, outputs] where it exists. */
class Experts {
 public:
  Experts(Weights& weights, const std::string& name, int count, int outputs, int inputs, bool bias = false);

  /** x [M,inputs], row m by expert which[m] (int32, rising) -> [M,outputs]. */
  mx::array operator()(const mx::array& x, const mx::array& which) const;

 private:
  Matrix matrix_;
  std::optional<mx::array> bias_;
};

/** Feed-forward experts: down_proj(act(gate_proj(x), up_proj(x))). */
class SwitchGLU {
 public:
  using Act = std::function<mx::array(const mx::array& gate, const mx::array& up)>;

  SwitchGLU(
      Weights& weights,
      const std::string& name,
      int count,
      int dims,
      int hidden,
      Act act = swiglu,
      bool bias = false);

  /** x [T,dims], indices int [T,k] -> each choice's output [T,k,dims]. */
  mx::array operator()(const mx::array& x, const mx::array& indices) const;

 private:
  Act act_;
  Experts gate_proj;
  Experts up_proj;
  Experts down_proj;
};

/** Feed-forward experts without a gate: fc2(act(fc1(x))). */
class SwitchMLP {
 public:
  SwitchMLP(
      Weights& weights,
      const std::string& name,
      int count,
      int dims,
      int hidden,
      Activation act,
      bool bias = false);

  /** As SwitchGLU's. */
  mx::array operator()(const mx::array& x, const mx::array& indices) const;

 private:
  Activation act_;
  Experts fc1;
  Experts fc2;
};

/** A matrix a head, `<name>.weight` [heads, outputs, inputs] (multi-head latent
 * attention, arXiv 2405.04434). */
class MultiLinear {
 public:
  MultiLinear(Weights& weights, const std::string& name, int heads, int outputs, int inputs);

  /** x [T,heads,inputs] -> [T,heads,outputs]. */
  mx::array operator()(const mx::array& x) const;

 private:
  int heads_;
  Matrix matrix_;
};

/** The k greatest of scores [T,E] -> int32 [T,k], the first of equal ones first,
 * in falling order. */
mx::array top_experts(const mx::array& scores, int k);

/** y [T,k,D] by weights [T,k], summed over the choices -> [T,D] in y's dtype. */
mx::array weigh(const mx::array& y, const mx::array& weights);

} // namespace parallm
