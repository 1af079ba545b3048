#include "kv/step.h"

#include "base/error.h"

#include <algorithm>

namespace parallm {

namespace {

mx::array int_array(const std::vector<int>& values, mx::Shape shape) {
  return mx::array(values.data(), std::move(shape), mx::int32);
}

/** The first position that a query at `position` sees. */
int first_seen(int position, int window) {
  return window > 0 ? std::max(position - window + 1, 0) : 0;
}

} // namespace

Step::Step(std::vector<Span> spans, int block_size, int blocks) : spans_(std::move(spans)), block_size_(block_size) {
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
        positions.push_back(span.offset + i);
        lengths.push_back(span.rope_length);
      }
    }
    found = rotations_.emplace(&rope, rope.tables(positions, lengths)).first;
  }
  return found->second;
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
    size_t width = 1;
    for (auto& span : spans_) {
      width = std::max(width, span.blocks.size());
    }
    std::vector<int> ids(spans_.size() * width, 0);
    for (size_t r = 0; r < spans_.size(); ++r) {
      std::copy(spans_[r].blocks.begin(), spans_[r].blocks.end(), ids.begin() + r * width);
    }
    table_ = int_array(ids, {int(spans_.size()), int(width)});
  }
  return *table_;
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

Reading Step::decoding(const std::vector<const Span*>& spans, int window) const {
  int rows = spans.size();
  int keys = 0;
  bool padded = false;
  std::vector<int> tokens;
  for (auto* span : spans) {
    int seen = span->offset + 1 - first_seen(span->offset, window);
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
    int first = first_seen(position, window);
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

Reading Step::prefilling(const Span& span, int window) const {
  int first = first_seen(span.offset, window);
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
  if (window > 0 && keys > window) {
    std::unique_ptr<bool[]> mask(new bool[size_t(span.count) * keys]);
    for (int q = 0; q < span.count; ++q) {
      int position = span.offset + q;
      for (int i = 0; i < keys; ++i) {
        mask[size_t(q) * keys + i] = first + i <= position && first + i >= first_seen(position, window);
      }
    }
    out.causal = false;
    out.mask = mx::array(mask.get(), {1, 1, span.count, keys}, mx::bool_);
  }
  return out;
}

const Step::Plan& Step::plan(int window) {
  auto found = plans_.find(window);
  if (found != plans_.end()) {
    return found->second;
  }
  Plan plan;
  std::vector<const Span*> decoding_spans;
  for (auto& span : spans_) {
    if (span.count == 1) {
      decoding_spans.push_back(&span);
    }
  }
  if (!decoding_spans.empty()) {
    plan.readings.push_back(decoding(decoding_spans, window));
  }
  for (auto& span : spans_) {
    if (span.count > 1) {
      plan.readings.push_back(prefilling(span, window));
    }
  }
  std::vector<int> order(tokens_);
  int place = 0;
  bool moved = false;
  for (auto& reading : plan.readings) {
    for (int token : reading.tokens) {
      moved = moved || token != place;
      order[token] = place++;
    }
  }
  if (moved) {
    plan.order = int_array(order, {tokens_});
  }
  return plans_.emplace(window, std::move(plan)).first->second;
}

const std::vector<Reading>& Step::readings(int window) {
  return plan(window).readings;
}

const std::optional<mx::array>& Step::order(int window) {
  return plan(window).order;
}

} // namespace parallm
