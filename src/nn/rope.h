// Rotary position embedding (RoFormer, arXiv 2104.09864) and the scalings of
// checkpoints' `rope_scaling`: default, linear, llama3, dynamic, yarn. The
// frequencies are made once, on the host, in double.
#pragma once

#include <mlx/mlx.h>

#include <vector>

namespace parallm {
namespace mx = mlx::core;

class Rope {
 public:
  int dims = 0; // of a head's first dims, the rest is not rotated
  bool traditional = false; // pairs (2i, 2i+1) instead of (i, i + dims/2)
  float magnitude = 1; // yarn's factor on cos and sin
  std::vector<float> inverse_frequencies; // [dims/2] radians a position

  // "dynamic" (NTK): the base grows with the sequence's length past
  // `original_length`; 0: not dynamic.
  double base = 10000;
  double factor = 1;
  int original_length = 0;

  /** cos and sin, each [T, dims/2] float32, for positions[t]; lengths[t] is the
   * sequence's length for "dynamic". */
  std::pair<mx::array, mx::array> tables(const std::vector<int>& positions, const std::vector<int>& lengths) const;

  /** x [T,H,D] rotated by tables' cos and sin, in MLX ops. */
  mx::array rotate(const mx::array& x, const mx::array& cos, const mx::array& sin) const;
};

} // namespace parallm
