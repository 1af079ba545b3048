#include "kv/selection.h"

#include "base/error.h"
#include "kernels/cpu/ops.h"
#include "kernels/rows.h"

#include <algorithm>
#include <limits>

namespace parallm {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr size_t most_scores = 16 << 20; // held at once, as floats

/** int32 [L,1]: how many keys each of L queries sees, of which the first is at `position`. */
mx::array keys_seen(int position, int queries, int group) {
  auto ends = mx::expand_dims(mx::arange(position + 1, position + queries + 1), 1);
  return group == 1 ? ends : mx::floor_divide(ends, mx::array(group));
}

/** bool [L,keys] */
mx::array seen(int position, int queries, int keys, int group) {
  return mx::less(mx::expand_dims(mx::arange(keys), 0), keys_seen(position, queries, group));
}

/** [..,keys], of groups -> [..,positions]: a group's at its last. */
mx::array at_last(const mx::array& mask, int group, int positions) {
  if (group == 1) {
    return mask;
  }
  auto wide = mx::expand_dims(mask, -1);
  auto shape = wide.shape();
  shape.back() = group - 1;
  wide = mx::flatten(mx::concatenate({mx::zeros(shape, mx::bool_), wide}, -1), -2, -1);
  return mx::pad(wide, {{0, 0}, {0, 0}, {0, positions - wide.shape(2)}}, mx::array(false));
}

} // namespace

mx::array chosen_mask(const mx::array& blocks, const KeySelector& how, int positions) {
  const int choosers = blocks.shape(0), queries = blocks.shape(1), keys = positions / how.group;
  auto mask = mx::zeros({choosers, queries, (keys + how.block - 1) / how.block}, mx::bool_);
  mask = mx::put_along_axis(mask, blocks, mx::array(true), -1);
  if (how.block > 1) {
    mask = mx::slice(mx::repeat(mask, how.block, -1), {0, 0, 0}, {choosers, queries, keys});
  }
  mask = mx::logical_and(mask, seen(positions - queries, queries, keys, how.group));
  return at_last(mask, how.group, positions);
}

/** float32 [I,L,S] of q [L,I,D]. */
mx::array IndexKeys::scores(const mx::array& q, const mx::array& keys) const {
  auto wide = mx::astype(mx::swapaxes(q, 0, 1), mx::float32);
  if (!kernels_) {
    return mx::matmul(wide, mx::transpose(mx::astype(keys, mx::float32)));
  }
  return mx::unflatten(cpu::matmul(mx::flatten(wide, 0, 1), keys), 0, {q.shape(1), q.shape(0)});
}

/** Of queries [L,I,D], of which the first is at `position`, weights [L,I]. */
mx::array IndexKeys::choose(
    const mx::array& q,
    const mx::array& keys,
    const std::optional<mx::array>& weights,
    const Chosen& within,
    int position,
    const KeySelector& how) const {
  const int queries = q.shape(0), count = keys.shape(0);
  auto all = scores(q, keys);
  if (weights) {
    auto shares = mx::expand_dims(mx::transpose(mx::astype(*weights, mx::float32)), 2); // [I,L,1]
    all = mx::sum(mx::maximum(all, mx::array(0.0f)) * shares, 0, true);
  }
  all = mx::where(seen(position, queries, count, how.group), all, mx::array(-infinity));
  if (within) {
    all = mx::where(mx::swapaxes(*within, 0, 1), all, mx::array(-infinity));
  }
  const int blocks = (count + how.block - 1) / how.block;
  if (how.block > 1) {
    all = mx::pad(all, {{0, 0}, {0, 0}, {0, blocks * how.block - count}}, mx::array(-infinity));
    all = mx::max(mx::unflatten(all, 2, {blocks, how.block}), 3);
  }
  if (how.local_blocks > 0) {
    auto own = mx::floor_divide(keys_seen(position, queries, how.group) - mx::array(1), mx::array(how.block)); // [L,1]
    auto ids = mx::expand_dims(mx::arange(blocks), 0);
    auto local = mx::logical_and(mx::less_equal(ids, own), mx::greater(ids, own - mx::array(how.local_blocks)));
    all = mx::where(local, mx::array(infinity), all);
  }
  // A stable order: a partition's choice among equal scores would depend on their number.
  auto best = mx::slice(mx::argsort(-all, -1), {0, 0, 0}, {all.shape(0), queries, how.choices});
  return mx::astype(mx::sort(best, -1), mx::int32);
}

std::vector<std::optional<mx::array>> IndexKeys::choose(const KeySelector& selector) {
  check(pool_.shape(1) > 0, "kv: a layer that selects keys has index keys in its spec");
  auto turned = step_->rotate(mx::expand_dims(selector.k, 1), selector.rope);
  step_->write(pool_, mx::squeeze(turned, 1));
  auto q = step_->rotate(selector.q, selector.rope);
  std::vector<std::optional<mx::array>> out;
  for (auto& sequence : step_->sequences()) {
    const int count = sequence.keys / selector.group;
    if ((count + selector.block - 1) / selector.block <= selector.choices) {
      out.push_back({});
      continue;
    }
    auto slots = mx::slice(sequence.slots, {selector.group - 1}, {sequence.keys}, {selector.group});
    auto keys = mx::take(pool_, slots, 0);
    const int most = std::max<int>(1, most_scores / (size_t(q.shape(1)) * count));
    std::vector<mx::array> parts;
    for (int i = 0; i < sequence.queries; i += most) {
      const int first = sequence.tokens[0] + i;
      const int last = std::min(first + most, sequence.tokens[0] + sequence.queries);
      auto weights = selector.weights ? std::optional(rows(*selector.weights, first, last)) : std::nullopt;
      auto within = selector.within ? Chosen(mx::slice(
                                          rows(*selector.within, first, last),
                                          {0, 0, selector.group - 1},
                                          {last - first, selector.within->shape(1), sequence.keys},
                                          {1, 1, selector.group}))
                                    : std::nullopt;
      const int position = sequence.keys - sequence.queries + i;
      parts.push_back(choose(rows(q, first, last), keys, weights, within, position, selector));
    }
    out.push_back(parts.size() == 1 ? parts[0] : mx::concatenate(parts, 1));
  }
  return out;
}

Chosen IndexKeys::mask(const KeySelector& selector) {
  auto chosen = choose(selector);
  const int group = selector.group;
  if (group == 1 && std::none_of(chosen.begin(), chosen.end(), [](auto& blocks) { return blocks.has_value(); })) {
    return {};
  }
  auto& sequences = step_->sequences();
  const int choosers = selector.weights ? 1 : selector.q.shape(1);
  int longest = 0;
  for (auto& sequence : sequences) {
    longest = std::max(longest, sequence.keys);
  }
  std::vector<mx::array> parts;
  for (size_t i = 0; i < sequences.size(); ++i) {
    auto& sequence = sequences[i];
    auto mask = [&] { // [A,L,S]
      if (chosen[i]) {
        return chosen_mask(*chosen[i], selector, sequence.keys);
      }
      const int keys = sequence.keys / group;
      auto all = mx::expand_dims(seen(sequence.keys - sequence.queries, sequence.queries, keys, group), 0);
      return at_last(mx::repeat(all, choosers, 0), group, sequence.keys);
    }();
    mask = mx::swapaxes(mask, 0, 1);
    parts.push_back(mx::pad(mask, {{0, 0}, {0, 0}, {0, longest - sequence.keys}}, mx::array(false)));
  }
  return parts.size() == 1 ? parts[0] : mx::concatenate(parts, 0);
}

} // namespace parallm
