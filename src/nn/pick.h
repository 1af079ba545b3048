// The last step from logits to a token, on the device: filters and the draw,
// each row with its own values.
#pragma once

#include <mlx/mlx.h>

namespace parallm {
namespace mx = mlx::core;

/** One value a row, all [R]: temperature (0: the first of the greatest logits),
 * top_k int32 (0: off), top_p, min_p, draw in [0, 1). */
struct PickValues {
  mx::array temperature;
  mx::array top_k;
  mx::array top_p;
  mx::array min_p;
  mx::array draw;
};

/** logits [R,V] float32 -> token ids [R] int32. Filters in the order min_p,
 * top_k, top_p, each on what the one before left, made to sum to 1 again; the
 * token that crosses top_p stays, and so do ties at a filter's border. The
 * token is the first, in vocabulary order, whose running sum exceeds draw *
 * total (inverse transform sampling). */
mx::array pick(const mx::array& logits, const PickValues& values);

/** The same in MLX's own ops, which sort the vocabulary: what devices without a
 * kernel run. */
mx::array pick_by_sorting(const mx::array& logits, const PickValues& values);

} // namespace parallm
