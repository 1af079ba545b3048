#include "nn/pick.h"

#include "kernels/cpu/ops.h"
#include "nn/device.h"

#include <limits>

namespace parallm {

mx::array pick(const mx::array& logits, const PickValues& v) {
  if (on_cpu()) {
    return cpu::sample(logits, v.temperature, v.top_k, v.top_p, v.min_p, v.draw);
  }
  return pick_by_sorting(logits, v);
}

mx::array pick_by_sorting(const mx::array& logits, const PickValues& v) {
  const int V = logits.shape(1);
  const auto column = [](const mx::array& a) { return mx::expand_dims(a, 1); };
  const auto zero = mx::array(0.0f);

  auto greedy = mx::equal(v.temperature, zero);
  auto warmth = mx::where(greedy, mx::array(1.0f), v.temperature);
  auto scaled = mx::divide(logits, column(warmth));

  // p falls along each row; what a filter keeps is a prefix of it.
  auto sorted = mx::negative(mx::sort(mx::negative(scaled), 1));
  auto p = mx::softmax(sorted, 1);
  auto likely = mx::greater_equal(p, mx::multiply(column(v.min_p), mx::slice(p, {0, 0}, {p.shape(0), 1})));
  auto k = mx::where(mx::equal(v.top_k, mx::array(0)), mx::array(V), v.top_k);
  // A tie with the k-th stays: compare with its value, not with ranks.
  auto kth = mx::take_along_axis(sorted, column(mx::minimum(k, mx::array(V)) - mx::array(1)), 1);
  p = mx::where(mx::logical_and(likely, mx::greater_equal(sorted, kth)), p, zero);
  auto before = mx::cumsum(p, 1, false, /* inclusive = */ false);
  auto total = mx::sum(p, 1, true);
  auto kept = mx::logical_and(mx::less(before, mx::multiply(column(v.top_p), total)), mx::greater(p, zero));

  const auto inf = mx::array(std::numeric_limits<float>::infinity());
  auto border = mx::min(mx::where(kept, sorted, inf), 1, true);
  auto left = mx::softmax(mx::where(mx::greater_equal(scaled, border), scaled, -inf), 1);
  auto sums = mx::cumsum(left, 1);
  auto last = mx::slice(sums, {0, V - 1}, {sums.shape(0), V});
  auto drawn = mx::argmax(mx::greater(sums, mx::multiply(column(v.draw), last)), 1);
  return mx::astype(mx::where(greedy, mx::argmax(logits, 1), drawn), mx::int32);
}

} // namespace parallm
