// Layers that remember a state of fixed size: what they compute for sequences of
// one length, x [B,L,...], from the states before, which they replace by those
// after. On CPUs kernels/cpu's loops over tokens; elsewhere MLX's ops: a loop
// for a few tokens, else chunks whose inner work is matmuls. Engine thread only.
#pragma once

#include "nn/weights.h"

namespace parallm {

/** Convolution over a channel's last K tokens, under MLX's or HF's layout of
 * `<name>.weight`. State: the K-1 inputs before, [B,K-1,C] in the activations'
 * dtype. */
class CausalConv {
 public:
  /** `bias`: `<name>.bias` must exist; it is used wherever it exists. `silu`:
   * the outputs go through it. */
  CausalConv(Weights& weights, const std::string& name, int channels, int kernel, bool bias, bool silu);

  /** x [B,L,C] -> [B,L,C]. */
  mx::array operator()(const mx::array& x, mx::array& state) const;

 private:
  mx::array weight_; // [K,C] float32
  std::optional<mx::array> bias_; // [C]
  bool silu_;
};

/** A head keeps S [P,N], in float32, and for each token
 *   S = S * decay + u kᵀ,   out = S q + skip * v,
 * where u = beta * v, or by the delta rule beta * (v - S k) with the decayed S.
 * Mamba-2 (arXiv 2405.21060: q = C, k = B, v = x, beta = dt), gated linear
 * attention, and gated DeltaNet (arXiv 2412.06464) are of this form. With `read`
 * and `write`, as RWKV-7 has them (arXiv 2503.14456), also what the S before the
 * token holds is moved:
 *   S = S * decay + (S read) writeᵀ + u kᵀ. */
struct LinearRecurrence {
  mx::array q; // [B,L,G,N], each for H/G heads
  mx::array k; // [B,L,G,N]
  mx::array v; // [B,L,H,P]
  mx::array log_decay; // float32 [B,L,H], or [B,L,H,N]: a decay for each key's dim
  std::optional<mx::array> beta; // float32 [B,L,H]; 1
  std::optional<mx::array> skip; // float32 [H]; 0
  bool delta = false;
  std::optional<mx::array> read; // [B,L,G,N], both or none, and then no delta rule
  std::optional<mx::array> write; // [B,L,G,N]
};

/** -> [B,L,H,P] in v's dtype; state float32 [B,H,P,N]. */
mx::array linear_recurrence(const LinearRecurrence& in, mx::array& state);

/** Mamba (arXiv 2312.00752): a channel keeps s [N], s = exp(dt a) s + dt x b;
 * out = s.c + skip x. x [B,L,C], b and c [B,L,N]; float32: dt [B,L,C], a [C,N],
 * skip [C], state [B,C,N]. -> [B,L,C] in x's dtype. */
mx::array selective_scan(
    const mx::array& x,
    const mx::array& dt,
    const mx::array& a,
    const mx::array& b,
    const mx::array& c,
    const mx::array& skip,
    mx::array& state);

/** s = exp(log_decay) s + x, all s: float32 [B,L,C], state [B,C]. */
mx::array linear_scan(const mx::array& log_decay, const mx::array& x, mx::array& state);

/** The two forms of linear_recurrence in MLX's ops, for tests. */
mx::array linear_recurrence_by_token(const LinearRecurrence& in, mx::array& state);
mx::array linear_recurrence_by_chunk(const LinearRecurrence& in, mx::array& state);

} // namespace parallm
