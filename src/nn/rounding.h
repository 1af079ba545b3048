// Activations rounded to few bits, in blocks along the last axis that share a scale, for models that were trained to
// keep them so; x [...,D] of D no multiple of `block` stays as it is. Engine thread only.
#pragma once

#include <mlx/mlx.h>

namespace parallm {
namespace mx = mlx::core;

/** e4m3, the scales powers of two. */
mx::array round_to_fp8(const mx::array& x, int block);
/** e2m1, ties to even, the scales powers of two or (`e4m3_scale`) in e4m3. */
mx::array round_to_fp4(const mx::array& x, int block, bool e4m3_scale);

} // namespace parallm
