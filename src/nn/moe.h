// Mixture of experts: each token goes through few of many matrices. Tokens are
// sorted by expert once a block, so that a batch reads each expert's matrix once
// and no loop over rows or experts is needed. Engine thread only.
#pragma once

#include "nn/activation.h"
#include "nn/linear.h"

#include <functional>
#include <utility>

namespace parallm {

/** Which experts each token goes to, and what each one's output counts. */
struct Choice {
  mx::array experts; // int32 [T,k]
  mx::array weights; // float32 [T,k]
};

/** The k greatest of scores [T,E] -> int32 [T,k], in falling order, the first of
 * equal ones first. */
mx::array top_experts(const mx::array& scores, int k);

/** The k greatest of softmax(logits [T,E]); `normalize`: made to sum to 1
 * (Qwen's, OLMoE's `norm_topk_prob`). */
Choice choose_by_softmax(const mx::array& logits, int k, bool normalize);

/** Softmax over the k greatest logits alone (Mixtral, arXiv 2401.04088): the
 * same as above normalized, without the sum over all. */
Choice choose_then_softmax(const mx::array& logits, int k);

/** How scores choose experts in DeepSeek's models (arXiv 2412.19437, 2.1.2). */
struct Selection {
  int choices; // k
  int groups = 1; // of neighbouring experts
  int kept_groups = 1; // whose experts may be chosen
  int group_terms = 2; // a group is as good as the sum of so many of its best
  float outside = 0; // the scores of the other groups' experts
  bool normalize = true; // the weights sum to 1, before `scale`
  float scale = 1;
};

/** scores float32 [T,E]; `bias` float32 [E] counts for the choice, not for the
 * weights. */
Choice choose_by_score(const mx::array& scores, const std::optional<mx::array>& bias, const Selection& how);

/** The (token, choice) pairs of experts [T,k] in the order of their experts. */
class Routing {
 public:
  Routing(const mx::array& experts, int count);

  /** int32 [T*k] rising: the expert of each sorted row. */
  const mx::array& experts() const {
    return experts_;
  }
  /** x [T,D] -> [T*k,D], sorted. */
  mx::array gather(const mx::array& x) const;
  /** y [T*k,N], sorted, by weights float32 [T,k], summed over the choices ->
   * [T,N] in y's dtype. */
  mx::array weigh(const mx::array& y, const mx::array& weights) const;

 private:
  mx::array tokens_; // int32 [T*k] each pair's token
  mx::array experts_;
  mx::array places_; // int32 [T*k] where pair t*k + c lies in that order
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
  using Act = GluAct;

  SwitchGLU(
      Weights& weights,
      const std::string& name,
      int count,
      int dims,
      int hidden,
      Act act = swiglu,
      bool bias = false);

  /** x [T,dims] -> [T,dims]: the choices' outputs, weighed and summed. */
  mx::array operator()(const mx::array& x, const Choice& choice) const;

 private:
  int count_;
  Act act_;
  Experts gate_proj;
  Experts up_proj;
  Experts down_proj;
};

/** A router, a linear layer, and the experts that it chooses among. */
class SparseMoe {
 public:
  /** logits [T,E] -> whose experts. */
  using Choose = std::function<Choice(const mx::array& logits)>;

  /** `gate` and `experts` are whole names. */
  SparseMoe(
      Weights& weights,
      const std::string& gate,
      const std::string& experts,
      int count,
      int dims,
      int hidden,
      Choose choose,
      SwitchGLU::Act act = swiglu);

  /** x [T,dims] -> [T,dims]. */
  mx::array operator()(const mx::array& x) const;

 private:
  Choose choose_;
  Linear gate_;
  SwitchGLU experts_;
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
  mx::array operator()(const mx::array& x, const Choice& choice) const;

 private:
  int count_;
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

// Checkpoints' own layouts of experts to the one above.

/** The three matrices of a feed-forward expert, by Mixtral's names and by most
 * others'. */
using ExpertNames = std::vector<std::pair<std::string, std::string>>; // theirs, ours
extern const ExpertNames numbered_projections; // w1, w2, w3
extern const ExpertNames named_projections; // gate_proj, down_proj, up_proj

/** `<from>.<e>.<theirs>` of `count` experts to `<to>.<ours>`, stacked. */
void stack_experts(
    Weights& weights,
    const std::string& from,
    const std::string& to,
    int count,
    const ExpertNames& names = named_projections);

/** One dense tensor [count, dims, 2*hidden] (`transposed`) or [count, 2*hidden,
 * dims] of gates, then ups, to `<to>.gate_proj.weight` and `<to>.up_proj.weight`. */
void split_gate_up(Weights& weights, const std::string& from, const std::string& to, bool transposed);

/** A dense tensor [count, inputs, outputs] to `<to>.weight` [count, outputs,
 * inputs]. */
void transpose_experts(Weights& weights, const std::string& from, const std::string& to);

} // namespace parallm
