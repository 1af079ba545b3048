#include "engine/sampler.h"

#include "base/error.h"
#include "nn/host_array.h"
#include "nn/pick.h"

#include <algorithm>
#include <limits>
#include <memory>

namespace parallm {

namespace {

bool has_penalty(const Sampling& s) {
  return s.repetition_penalty != 1.0f || s.presence_penalty != 0.0f || s.frequency_penalty != 0.0f;
}

/** Adds logit_bias, and -inf for end tokens that may not come yet, in one
 * scatter. */
mx::array bias(
    const mx::array& logits,
    const std::vector<int32_t>& rows,
    const std::vector<int32_t>& ids,
    const std::vector<float>& values) {
  if (rows.empty()) {
    return logits;
  }
  auto updates = mx::reshape(host_array(values), {static_cast<int>(values.size()), 1, 1});
  return mx::scatter_add(logits, {host_array(rows), host_array(ids)}, updates, {0, 1});
}

/** Keeps the tokens whose bit is set. Rows without a grammar come with every
 * bit set. */
mx::array mask(const mx::array& logits, const std::vector<Draw>& draws) {
  if (std::all_of(draws.begin(), draws.end(), [](const Draw& draw) { return draw.row->allowed.empty(); })) {
    return logits;
  }
  const int V = logits.shape(1);
  const int words = (V + 31) / 32;
  const int R = static_cast<int>(draws.size());
  std::vector<uint32_t> bits;
  bits.reserve(static_cast<size_t>(R) * words);
  for (const auto& [row, ahead] : draws) {
    if (row->allowed.empty()) {
      bits.insert(bits.end(), words, ~uint32_t{0});
    } else {
      check(static_cast<int>(row->allowed.size()) == words, "a grammar's mask is as wide as the vocabulary");
      bits.insert(bits.end(), row->allowed.begin(), row->allowed.end());
    }
  }
  auto packed = mx::array(bits.data(), {R, words, 1}, mx::uint32);
  auto shifts = mx::arange(0, 32, mx::uint32);
  auto allowed =
      mx::reshape(mx::bitwise_and(mx::right_shift(packed, shifts), mx::array(1, mx::uint32)), {R, words * 32});
  allowed = mx::slice(allowed, {0, 0}, {R, V});
  return mx::where(mx::astype(allowed, mx::bool_), logits, mx::array(-std::numeric_limits<float>::infinity()));
}

/** Sampled::unsure. Logits of rows that have no limit are not read. */
std::optional<mx::array> unsure(const mx::array& logits, const std::vector<Draw>& draws) {
  std::vector<int32_t> rows;
  std::vector<float> limits;
  for (size_t r = 0; r < draws.size(); ++r) {
    if (draws[r].row->unsure_above > 0) {
      rows.push_back(static_cast<int32_t>(r));
      limits.push_back(draws[r].row->unsure_above);
    }
  }
  if (rows.empty()) {
    return std::nullopt;
  }
  auto index = host_array(rows);
  auto above = mx::greater(entropy(mx::take(logits, index, 0)), host_array(limits));
  return mx::put_along_axis(mx::zeros({static_cast<int>(draws.size())}, mx::bool_), index, above, 0);
}

/** float32 [R]: 1 where all guesses ahead of a draw were what was drawn, else
 * 0. */
mx::array come_true(const std::vector<Draw>& draws, const mx::array& tokens, const mx::array& read) {
  const int R = static_cast<int>(draws.size());
  int most = 0;
  std::vector<int32_t> before(R);
  std::unique_ptr<bool[]> first(new bool[R]);
  for (int r = 0; r < R; ++r) {
    first[r] = draws[r].ahead == 0;
    before[r] = first[r] ? r : r - 1;
    most = std::max(most, draws[r].ahead);
  }
  auto right =
      mx::logical_or(mx::array(first.get(), {R}, mx::bool_), mx::equal(mx::take(tokens, host_array(before), 0), read));
  auto all = right;
  for (int back = 1; back < most; ++back) {
    for (int r = 0; r < R; ++r) {
      before[r] = r - std::min(back, draws[r].ahead);
    }
    all = mx::logical_and(all, mx::take(right, host_array(before), 0));
  }
  return mx::astype(all, mx::float32);
}

} // namespace

Scores score(const mx::array& logits, const mx::array& tokens, int top) {
  auto logprobs =
      mx::subtract(mx::astype(logits, mx::float32), mx::logsumexp(mx::astype(logits, mx::float32), 1, true));
  Scores scores{mx::squeeze(mx::take_along_axis(logprobs, mx::expand_dims(tokens, 1), 1), 1)};
  if (top > 0) {
    const int R = logits.shape(0);
    auto ids = mx::slice(mx::argpartition(mx::negative(logprobs), top - 1, 1), {0, 0}, {R, top});
    auto values = mx::take_along_axis(logprobs, ids, 1);
    auto order = mx::argsort(mx::negative(values), 1);
    scores.ids = mx::astype(mx::take_along_axis(ids, order, 1), mx::int32);
    scores.top = mx::take_along_axis(values, order, 1);
  }
  return scores;
}

mx::array entropy(const mx::array& logits) {
  auto wide = mx::astype(logits, mx::float32);
  auto logprobs = mx::subtract(wide, mx::logsumexp(wide, 1, true));
  auto p = mx::exp(logprobs);
  auto nothing = mx::array(0.0f); // of what can't come: 0 times -inf
  return mx::negative(mx::sum(mx::where(mx::greater(p, nothing), mx::multiply(p, logprobs), nothing), 1));
}

Sampler::Sampler(int slots, int vocabulary) : vocabulary_(vocabulary), slots_(slots) {}

const Sampling& Sampler::sampling(int slot) const {
  return slots_.at(slot).sampling;
}

void Sampler::join(const Join& join) {
  slots_.at(join.slot) = {join.sampling, join.end_ids};
  if (!has_penalty(join.sampling)) {
    return;
  }
  const int slots = static_cast<int>(slots_.size());
  if (!made_) {
    in_prompt_ = mx::zeros({slots, vocabulary_}, mx::float32);
    made_ = mx::zeros({slots, vocabulary_}, mx::float32);
  }
  std::vector<float> seen(vocabulary_), made(vocabulary_);
  for (int32_t id : join.prompt) {
    seen[id] = 1;
  }
  for (int32_t id : join.generated) {
    made[id] += 1;
  }
  const auto put = [&](const mx::array& all, const std::vector<float>& row) {
    return mx::slice_update(
        all, mx::array(row.data(), {1, vocabulary_}), mx::Shape{join.slot, 0}, mx::Shape{join.slot + 1, vocabulary_});
  };
  in_prompt_ = put(*in_prompt_, seen);
  made_ = put(*made_, made);
}

PickValues Sampler::pick_values(const std::vector<Draw>& draws) const {
  std::vector<int32_t> top_k;
  std::vector<float> temperature, top_p, min_p, numbers;
  for (const auto& [row, ahead] : draws) {
    const Sampling& s = sampling(row->slot);
    temperature.push_back(s.temperature);
    top_k.push_back(s.top_k);
    top_p.push_back(s.top_p);
    min_p.push_back(s.min_p);
    numbers.push_back(draw(s.seed, row->draw_index + ahead));
  }
  return {host_array(temperature), host_array(top_k), host_array(top_p), host_array(min_p), host_array(numbers)};
}

mx::array Sampler::penalize(
    const mx::array& logits,
    const std::vector<Draw>& draws,
    const std::vector<int>& penalized,
    const std::optional<mx::array>& read) {
  std::vector<int32_t> slots;
  std::vector<float> repetition, presence, frequency;
  std::vector<int32_t> guess_rows, guesses; // which of `penalized`, which of `read`
  for (int r : penalized) {
    const Sampling& s = sampling(draws[r].row->slot);
    for (int back = 0; back < draws[r].ahead; ++back) {
      guess_rows.push_back(static_cast<int32_t>(slots.size()));
      guesses.push_back(r - back);
    }
    slots.push_back(draws[r].row->slot);
    repetition.push_back(s.repetition_penalty);
    presence.push_back(s.presence_penalty);
    frequency.push_back(s.frequency_penalty);
  }
  const auto values = [](const std::vector<float>& v) { return mx::expand_dims(host_array(v), 1); };
  auto index = host_array(slots);
  auto made = mx::take(*made_, index, 0);
  if (!guesses.empty()) {
    auto ones = mx::ones({static_cast<int>(guesses.size()), 1, 1}, mx::float32);
    made =
        mx::scatter_add(made, {host_array(guess_rows), mx::take(read.value(), host_array(guesses), 0)}, ones, {0, 1});
  }
  auto prompt = mx::take(*in_prompt_, index, 0);
  auto was_made = mx::greater(made, mx::array(0.0f));
  auto seen = mx::logical_or(was_made, mx::greater(prompt, mx::array(0.0f)));

  auto l = mx::take(logits, host_array(penalized), 0);
  auto divided = mx::where(
      mx::greater(l, mx::array(0.0f)), mx::divide(l, values(repetition)), mx::multiply(l, values(repetition)));
  l = mx::where(seen, divided, l);
  l = mx::subtract(l, mx::multiply(made, values(frequency)));
  l = mx::subtract(l, mx::multiply(mx::astype(was_made, mx::float32), values(presence)));

  // Row r of the result is its penalized self, or itself.
  std::vector<int32_t> order(draws.size());
  for (size_t r = 0; r < draws.size(); ++r) {
    order[r] = static_cast<int32_t>(r);
  }
  for (size_t i = 0; i < penalized.size(); ++i) {
    order[penalized[i]] = static_cast<int32_t>(draws.size() + i);
  }
  return mx::take(mx::concatenate({logits, l}, 0), host_array(order), 0);
}

void Sampler::count(
    const std::vector<Draw>& draws,
    const std::vector<int>& penalized,
    const mx::array& tokens,
    const std::optional<mx::array>& read,
    const std::optional<mx::array>& unsure) {
  std::vector<int32_t> slots;
  for (int r : penalized) {
    slots.push_back(draws[r].row->slot);
  }
  auto index = host_array(penalized);
  auto taken = read ? mx::take(come_true(draws, tokens, *read), index, 0)
                    : mx::ones({static_cast<int>(slots.size())}, mx::float32);
  if (unsure) { // what is drawn where it is unsure is not taken
    taken = mx::where(mx::take(*unsure, index, 0), mx::array(0.0f), taken);
  }
  made_ = mx::scatter_add(
      *made_, {host_array(slots), mx::take(tokens, index, 0)}, mx::reshape(taken, {taken.shape(0), 1, 1}), {0, 1});
}

Sampled Sampler::sample(mx::array logits, const std::vector<Draw>& draws, const std::optional<mx::array>& read) {
  const auto raw = mx::astype(logits, mx::float32);
  std::vector<int> penalized;
  std::vector<int32_t> bias_rows, bias_ids;
  std::vector<float> bias_values;
  int top = -1;
  for (size_t r = 0; r < draws.size(); ++r) {
    const RowStep& row = *draws[r].row;
    const Slot& slot = slots_.at(row.slot);
    const Sampling& s = slot.sampling;
    const auto add = [&](int32_t id, float value) {
      bias_rows.push_back(static_cast<int32_t>(r));
      bias_ids.push_back(id);
      bias_values.push_back(value);
    };
    if (has_penalty(s)) {
      penalized.push_back(static_cast<int>(r));
    }
    for (auto [id, value] : s.logit_bias) {
      add(id, value);
    }
    if (row.draw_index + draws[r].ahead < s.min_tokens) {
      for (int32_t id : slot.end_ids) {
        add(id, -std::numeric_limits<float>::infinity());
      }
    }
    top = std::max(top, s.logprobs);
  }

  auto l = penalized.empty() ? raw : penalize(raw, draws, penalized, read);
  l = mask(bias(l, bias_rows, bias_ids, bias_values), draws);
  Sampled sampled{pick(l, pick_values(draws))};
  sampled.unsure = unsure(raw, draws);
  if (!penalized.empty()) {
    count(draws, penalized, sampled.tokens, read, sampled.unsure);
  }
  if (top >= 0) {
    sampled.scores = score(raw, sampled.tokens, std::min(top, vocabulary_));
  }
  return sampled;
}

} // namespace parallm
