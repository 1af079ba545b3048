#include "kv/step.h"

#include "base/error.h"
#include "nn/host_array.h"

#include <algorithm>

namespace parallm {

namespace {

mx::array int_array(const std::vector<int>& values, mx::Shape shape) {
  return host_array(values, std::move(shape));
}

mx::array block_table(const std::vector<const Span*>& spans) {
  size_t width = 1;
  for (auto* span : spans) {
    width = std::max(width, span->blocks.size());
  }
  std::vector<int> ids(spans.size() * width, 0);
  for (size_t r = 0; r < spans.size(); ++r) {
    std::copy(spans[r]->blocks.begin(), spans[r]->blocks.end(), ids.begin() + r * width);
  }
  return int_array(ids, {int(spans.size()), int(width)});
}

} // namespace

int View::first_seen(int position) const {
  int first = window > 0 ? std::max(position - window + 1, 0) : 0;
  return chunk > 0 ? std::max(first, position / chunk * chunk) : first;
}

Step::Step(std::vector<Span> spans, int block_size, int blocks)
    : spans_(std::move(spans)), block_size_(block_size), capacity_(blocks) {
  for (auto& span : spans_) {
    check(span.count > 0 && span.offset >= 0, "kv: a span has tokens");
    check(span.first == tokens_, "kv: spans lie one after another");
    tokens_ += span.count;
    size_t needed = (span.offset + span.count + block_size - 1) / block_size;
    check(span.blocks.size() >= needed, "kv: a block for every position");
    for (size_t i = 0; i < needed; ++i) {
      check(span.blocks[i] >= 0 && span.blocks[i] < blocks, "kv: block ids lie in the pool");
      blocks_used_ = std::max(blocks_used_, span.blocks[i] + 1);
    }
    span.blocks.resize(needed);
  }
}

int Step::slot(const Span& span, int position) const {
  return span.blocks[position / block_size_] * block_size_ + position % block_size_;
}

const std::pair<mx::array, mx::array>& Step::rotation(const Rope& rope) {
  auto found = rotations_.find(&rope);
  if (found == rotations_.end()) {
    std::vector<int> positions;
    std::vector<int> lengths;
    for (auto& span : spans_) {
      for (int i = 0; i < span.count; ++i) {
        positions.push_back(span.offset + span.shift + i);
        lengths.push_back(span.rope_length);
      }
    }
    found = rotations_.emplace(&rope, rope.tables(positions, lengths)).first;
  }
  return found->second;
}

mx::array Step::rotate(const mx::array& x, const Rope* rope) {
  if (!rope) {
    return x;
  }
  auto& [cos, sin] = rotation(*rope);
  return rope->rotate(x, cos, sin);
}

mx::array Step::rotated(const mx::array& q, const Attention& how) {
  return rotate(mx::astype(q, mx::float32), how.rope);
}

void Step::grow(mx::array& pool) const {
  const int have = pool.shape(0);
  if (blocks_used_ * block_size_ <= have) {
    return;
  }
  int blocks = std::max(blocks_used_, have / block_size_ * 2);
  blocks = std::min(std::max(blocks, 64), capacity_);
  auto shape = pool.shape();
  shape[0] = blocks * block_size_ - have;
  pool = mx::concatenate({pool, mx::zeros(shape, pool.dtype())}, 0);
}

void Step::write(mx::array& pool, const mx::array& x) {
  grow(pool);
  pool = mx::scatter(pool, write_slots(), mx::expand_dims(mx::astype(x, pool.dtype()), 1), 0);
}

const mx::array& Step::positions() {
  if (!positions_) {
    std::vector<int> positions;
    for (auto& span : spans_) {
      for (int i = 0; i < span.count; ++i) {
        positions.push_back(span.offset + span.shift + i);
      }
    }
    positions_ = int_array(positions, {tokens_});
  }
  return *positions_;
}

const mx::array& Step::spans() {
  if (!spans_array_) {
    std::vector<int> rows;
    for (auto& span : spans_) {
      rows.insert(rows.end(), {span.first, span.count, span.offset});
    }
    spans_array_ = int_array(rows, {int(spans_.size()), 3});
  }
  return *spans_array_;
}

const mx::array& Step::table() {
  if (!table_) {
    std::vector<const Span*> all;
    for (auto& span : spans_) {
      all.push_back(&span);
    }
    table_ = block_table(all);
  }
  return *table_;
}

const std::optional<DecodingRows>& Step::decoding_rows() {
  if (!decoding_rows_) {
    decoding_rows_.emplace();
    std::vector<const Span*> rows;
    std::vector<int> tokens, positions;
    for (auto& span : spans_) {
      if (span.count == 1) {
        rows.push_back(&span);
        tokens.push_back(span.first);
        positions.push_back(span.offset);
      }
    }
    int count = rows.size();
    if (count > 0) {
      *decoding_rows_ = {int_array(tokens, {count}), int_array(positions, {count}), block_table(rows)};
    }
  }
  return *decoding_rows_;
}

int Step::most_seen(View view) const {
  int most = 0;
  for (auto& span : spans_) {
    if (span.count == 1) {
      most = std::max(most, span.offset + 1 - view.first_seen(span.offset));
    }
  }
  return most;
}

const mx::array& Step::write_slots() {
  if (!write_slots_) {
    std::vector<int> slots;
    for (auto& span : spans_) {
      for (int i = 0; i < span.count; ++i) {
        slots.push_back(slot(span, span.offset + i));
      }
    }
    write_slots_ = int_array(slots, {tokens_});
  }
  return *write_slots_;
}

Reading Step::decoding(const std::vector<const Span*>& spans, View view) const {
  int rows = spans.size();
  int keys = 0;
  bool padded = false;
  std::vector<int> tokens;
  for (auto* span : spans) {
    int seen = span->offset + 1 - view.first_seen(span->offset);
    padded = padded || (keys != 0 && seen != keys);
    keys = std::max(keys, seen);
    tokens.push_back(span->first);
  }
  if (padded) {
    // MLX's buffer cache keeps every size it meets: few sizes, not one more each step.
    keys = (keys + 63) / 64 * 64;
  }
  // Padding reads the row's own first key again: never another row's values,
  // nor what was never written.
  std::vector<int> slots(size_t(rows) * keys);
  std::unique_ptr<bool[]> mask(new bool[slots.size()]);
  for (int r = 0; r < rows; ++r) {
    int position = spans[r]->offset;
    int first = view.first_seen(position);
    for (int i = 0; i < keys; ++i) {
      bool seen = first + i <= position;
      slots[size_t(r) * keys + i] = slot(*spans[r], seen ? first + i : first);
      mask[size_t(r) * keys + i] = seen;
    }
  }
  Reading out{rows, 1, keys, tokens, int_array(slots, {rows * keys}), false, {}};
  if (padded) {
    out.mask = mx::array(mask.get(), {rows, 1, 1, keys}, mx::bool_);
  }
  return out;
}

Reading Step::prefilling(const Span& span, View view) const {
  int first = view.first_seen(span.offset);
  int keys = span.offset + span.count - first;
  std::vector<int> tokens(span.count);
  for (int i = 0; i < span.count; ++i) {
    tokens[i] = span.first + i;
  }
  std::vector<int> slots(keys);
  for (int i = 0; i < keys; ++i) {
    slots[i] = slot(span, first + i);
  }
  Reading out{1, span.count, keys, tokens, int_array(slots, {keys}), true, {}};
  bool all = view.first_seen(span.offset + span.count - 1) == first;
  if (!all) {
    std::unique_ptr<bool[]> mask(new bool[size_t(span.count) * keys]);
    for (int q = 0; q < span.count; ++q) {
      int position = span.offset + q;
      for (int i = 0; i < keys; ++i) {
        mask[size_t(q) * keys + i] = first + i <= position && first + i >= view.first_seen(position);
      }
    }
    out.causal = false;
    out.mask = mx::array(mask.get(), {1, 1, span.count, keys}, mx::bool_);
  }
  return out;
}

std::vector<std::vector<const Span*>> Step::groups() const {
  std::vector<std::vector<const Span*>> out;
  std::vector<const Span*> decoding;
  for (auto& span : spans_) {
    if (span.count == 1) {
      decoding.push_back(&span);
    }
  }
  if (!decoding.empty()) {
    out.push_back(std::move(decoding));
  }
  for (auto& span : spans_) {
    if (span.count > 1) {
      out.push_back({&span});
    }
  }
  return out;
}

const std::vector<Reading>& Step::readings(View view, bool with_decoding) {
  auto [found, fresh] = readings_.try_emplace({view, with_decoding});
  if (fresh) {
    for (auto& group : groups()) {
      if (group[0]->count > 1) {
        found->second.push_back(prefilling(*group[0], view));
      } else if (with_decoding) {
        found->second.push_back(decoding(group, view));
      }
    }
  }
  return found->second;
}

const std::vector<Reading>& Step::sequences() {
  if (sequences_.empty()) {
    for (auto& span : spans_) {
      sequences_.push_back(prefilling(span, {}));
    }
  }
  return sequences_;
}

const std::optional<mx::array>& Step::order() {
  if (!order_) {
    std::vector<int> order(tokens_);
    int place = 0;
    bool moved = false;
    for (auto& group : groups()) {
      for (auto* span : group) {
        for (int token = span->first; token < span->first + span->count; ++token) {
          moved = moved || token != place;
          order[token] = place++;
        }
      }
    }
    order_.emplace(moved ? std::optional(int_array(order, {tokens_})) : std::nullopt);
  }
  return *order_;
}

const std::vector<Run>& Step::runs(int slots) {
  if (runs_.empty()) {
    for (auto& group : groups()) {
      std::vector<int> tokens, at, before;
      for (auto* span : group) {
        check(span->slot >= 0 && span->slot < slots, "kv: a sequence's states have a slot");
        at.push_back(span->slot);
        before.push_back(span->offset == 0 ? slots : span->slot);
        for (int i = 0; i < span->count; ++i) {
          tokens.push_back(span->first + i);
        }
      }
      int rows = group.size();
      runs_.push_back(
          {rows,
           group[0]->count,
           int_array(tokens, {int(tokens.size())}),
           int_array(at, {rows}),
           int_array(before, {rows})});
    }
  }
  return runs_;
}

} // namespace parallm
