// Gated activations of feed-forward blocks. Engine thread only.
#pragma once

#include <mlx/mlx.h>

namespace parallm {

/** silu(gate) * up, both [T,N] (Shazeer, arXiv 2002.05202). */
mlx::core::array swiglu(const mlx::core::array& gate, const mlx::core::array& up);

} // namespace parallm
