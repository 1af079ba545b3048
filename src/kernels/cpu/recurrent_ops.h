// MLX primitives of recurrent layers for CPUs, beside ops.h: what is said there
// of rows and bits holds here for sequences. Tokens are taken one after another
// whatever the call's length, so that a state and an output are the same bits
// in one call or in many. Each takes the state that the sequences have and
// gives {outputs, state after the last token}. nn/recurrent.h has the maths.
#pragma once

#include <mlx/mlx.h>

#include <optional>
#include <utility>

namespace parallm::cpu {
namespace mx = mlx::core;

using WithState = std::pair<mx::array, mx::array>;

/** x [B,L,C], weight float32 [K,C], bias float32 [C], state [B,K-1,C] of x's dtype: the inputs before the first. */
WithState causal_conv(
    const mx::array& x,
    const mx::array& weight,
    const std::optional<mx::array>& bias,
    bool silu,
    const mx::array& state);

/** q, k [B,L,G,N], v [B,L,H,P] of one float type, H a multiple of G; float32: log_decay [B,L,H] or [B,L,H,N],
 *  beta [B,L,H], skip [H], state [B,H,P,N]. read and write, both or none, are as q. */
WithState linear_recurrence(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const mx::array& log_decay,
    const std::optional<mx::array>& beta,
    const std::optional<mx::array>& skip,
    bool delta,
    const std::optional<mx::array>& read,
    const std::optional<mx::array>& write,
    const mx::array& state);

/** x [B,L,C], b, c [B,L,N] of one float type; float32: dt [B,L,C], a [C,N], skip [C], state [B,C,N]. */
WithState selective_scan(
    const mx::array& x,
    const mx::array& dt,
    const mx::array& a,
    const mx::array& b,
    const mx::array& c,
    const mx::array& skip,
    const mx::array& state);

/** float32: log_decay, x [B,L,C], state [B,C]. */
WithState linear_scan(const mx::array& log_decay, const mx::array& x, const mx::array& state);

} // namespace parallm::cpu
