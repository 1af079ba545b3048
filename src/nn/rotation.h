// Rotations of a layer's inputs that were folded into its weights before these
// were quantized (QuaRot, arXiv 2404.00456; QuIP#, arXiv 2402.04396). Engine thread
// only.
#pragma once

#include <mlx/mlx.h>

namespace parallm {
namespace mx = mlx::core;

/** Signs, then an orthonormal Walsh-Hadamard transform of each block of inputs, in float32. */
class Rotation {
 public:
  /** signs float32 [inputs], 1 or -1; `block`: a power of two that divides their number. */
  Rotation(mx::array signs, int block) : signs_(std::move(signs)), block_(block) {}

  /** x [T,inputs], whose inputs may be several axes -> [T,inputs] in x's dtype. */
  mx::array operator()(const mx::array& x) const;
  /** x [T,inputs], turned back. */
  mx::array back(const mx::array& x) const;

 private:
  mx::array transformed(const mx::array& x) const;

  mx::array signs_;
  int block_;
};

} // namespace parallm
