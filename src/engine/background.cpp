#include "engine/background.h"

#include "base/error.h"
#include "nn/host_array.h"

#include <algorithm>
#include <numeric>

namespace parallm {

namespace {

// Tokens of a step: each has sums [3,N] of its own.
constexpr int chunk = 16;

} // namespace

Background::Background(
    Model& model,
    mx::Dtype kv_dtype,
    std::shared_ptr<const Memories> memories,
    RecallHow how,
    std::vector<std::vector<int32_t>> probes)
    : model_(model),
      recalled_(std::make_shared<Recalled>(std::move(memories), std::move(how))),
      probes_(std::move(probes)),
      sums_(recalled_->memories->tokens()) {
  size_t most = 0;
  for (const auto& probe : probes_) {
    most = std::max(most, probe.size());
    if (probe.empty()) {
      fail_field("probes", "[memory] a probe must have a token; got none");
    }
  }
  if (most == 0) {
    fail_field("probes", "[memory] a background needs a probe; got none");
  }
  kv_ = {.block_size = 16, .blocks = static_cast<int>(most + 15) / 16, .slots = 1, .dtype = kv_dtype};
  const auto specs = model_.cache_specs();
  caches_ = make_recall_caches(make_paged_caches(specs, kv_), static_cast<int>(specs.size()));
}

std::optional<std::vector<float>> Background::step() {
  const auto& probe = probes_[probe_];
  const int size = static_cast<int>(probe.size());
  const int count = std::min(chunk, size - at_);
  std::vector<int> blocks(kv_.blocks);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::vector<Span> spans; // one a token: a span's last one is recorded
  std::vector<std::shared_ptr<MemoryRecord>> records;
  for (int i = 0; i < count; ++i) {
    records.push_back(std::make_shared<MemoryRecord>());
    spans.push_back({i, 1, at_ + i, blocks, size, 0, recalled_, 0, records.back()});
  }
  caches_->begin(std::move(spans));
  std::vector<int32_t> ids(probe.begin() + at_, probe.begin() + at_ + count);
  std::vector<mx::array> outputs{model_.hidden(host_array(ids), *caches_)};
  if (records[0]->sums && records[0]->sums->all) {
    outputs.push_back(*records[0]->sums->all);
  }
  mx::eval(outputs);
  for (const auto& record : records) {
    for (const UsedMemory& used : record->use().memories) {
      sums_[used.memory] += used.mass;
    }
  }
  queries_ += count;
  at_ += count;
  if (at_ == size) {
    at_ = 0;
    ++probe_;
  }
  if (probe_ < probes_.size()) {
    return std::nullopt;
  }
  std::vector<float> means(sums_.size());
  std::transform(sums_.begin(), sums_.end(), means.begin(), [&](double sum) { return float(sum / queries_); });
  return means;
}

} // namespace parallm
