#include "engine/reader.h"

#include "base/error.h"

#include <algorithm>
#include <numeric>

namespace parallm {

namespace {

mx::array columns(const mx::array& x, int begin, int end) {
  return mx::slice(x, {0, begin, 0}, {x.shape(0), end, x.shape(2)});
}

void add(std::vector<mx::array>& to, const MemoryLayer& layer) {
  for (auto* rows : {&layer.keys, &layer.values}) {
    const auto arrays = rows->arrays();
    to.insert(to.end(), arrays.begin(), arrays.end());
  }
}

} // namespace

Reader::Reader(Model& model, mx::Dtype kv_dtype, std::vector<int32_t> tokens, ReadHow how)
    : model_(model), tokens_(std::move(tokens)), how_(std::move(how)) {
  const auto specs = model.cache_specs();
  if (auto why = why_no_memories(specs); !why.empty()) {
    fail_field("memory", "[memory] this model takes no memories: {}", why);
  }
  if (how_.max_length < 1 || how_.stride < 1 || how_.stride > how_.max_length) {
    fail_field(
        "stride",
        "[memory] stride must be from 1 to max_length; got {} and max_length {}",
        how_.stride,
        how_.max_length);
  }
  std::sort(how_.dropped.begin(), how_.dropped.end()); // a vocabulary may have thousands of special ones
  int keeps = 0;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    const int32_t id = tokens_[i];
    if (id < 0 || id >= model.vocabulary()) {
      fail_field("tokens", "[memory] token ids must be from 0 to {}; got {}", model.vocabulary() - 1, id);
    }
    keeps += keeps_token(i);
  }
  if (keeps == 0) {
    fail_field("tokens", "[memory] a text must have a token that is not special; got {} tokens", tokens_.size());
  }
  const int most = std::min<int>(how_.max_length, tokens_.size());
  kv_ = {.block_size = 16, .blocks = (most + 15) / 16, .slots = 1, .dtype = kv_dtype};
  parts_.resize(specs.size());
  begin_window();
}

bool Reader::keeps_token(size_t i) const {
  return static_cast<int>(i) >= how_.dropped_first &&
      !std::binary_search(how_.dropped.begin(), how_.dropped.end(), tokens_[i]);
}

void Reader::begin_window() {
  const auto specs = model_.cache_specs();
  caches_ = std::make_unique<RecordingCaches>(make_paged_caches(specs, kv_), static_cast<int>(specs.size()));
  at_ = 0;
}

std::shared_ptr<const Memory> Reader::step() {
  const int size = static_cast<int>(tokens_.size());
  const int end = std::min(size, window_ + how_.max_length);
  const int count = std::min(how_.chunk, end - window_ - at_);
  std::vector<int> blocks(kv_.blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  caches_->begin({{0, count, at_, blocks, end - window_}});
  mx::array ids(tokens_.data() + window_ + at_, {count}, mx::int32);
  std::vector<mx::array> outputs{model_.hidden(ids, *caches_)};
  if (!caches_->rotates()) {
    fail_field("memory", "[memory] this model takes no memories: its keys come to the cache with their positions");
  }
  const auto layers = caches_->take();
  if (std::none_of(layers.begin(), layers.end(), [](auto& layer) { return layer.has_value(); })) {
    fail_field("memory", "[memory] this model takes no memories: every layer's attention has a window");
  }
  const int first = std::max(0, kept_ - window_ - at_); // of the step, what an earlier window has not kept
  for (size_t l = 0; l < layers.size() && first < count; ++l) {
    if (layers[l]) {
      const auto part = [&](const cpu::RecallRows& rows) {
        const auto x = columns(rows.data, first, count);
        return how_.coded ? cpu::RecallRows::coded(x) : mx::contiguous(mx::astype(x, kv_.dtype));
      };
      parts_[l].push_back({part(layers[l]->keys), part(layers[l]->values)});
      add(outputs, parts_[l].back());
    }
  }
  mx::eval(outputs);
  at_ += count;
  if (window_ + at_ < end) {
    return nullptr;
  }
  kept_ = end;
  if (end == size) {
    return finish();
  }
  window_ += how_.stride;
  begin_window();
  return nullptr;
}

std::shared_ptr<const Memory> Reader::finish() {
  auto memory = std::make_shared<Memory>();
  std::vector<int> places;
  for (size_t i = 0; i < tokens_.size(); ++i) {
    if (keeps_token(i)) {
      places.push_back(static_cast<int>(i));
      memory->tokens.push_back(tokens_[i]);
    }
  }
  mx::array index(places.data(), {static_cast<int>(places.size())}, mx::int32);
  std::vector<mx::array> outputs;
  for (auto& parts : parts_) {
    auto& layer = memory->layers.emplace_back();
    if (parts.empty()) {
      continue;
    }
    std::vector<cpu::RecallRows> keys, values;
    for (auto& part : parts) {
      keys.push_back(part.keys);
      values.push_back(part.values);
    }
    const auto kept = [&](const std::vector<cpu::RecallRows>& all) {
      return joined(all).changed([&](auto& x) { return mx::take(x, index, 1); });
    };
    layer.emplace(MemoryLayer{kept(keys), kept(values)});
    add(outputs, *layer);
  }
  mx::eval(outputs);
  return memory;
}

} // namespace parallm
