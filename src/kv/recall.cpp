#include "kv/recall.h"

#include "base/error.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "kernels/rows.h"
#include "nn/device.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace parallm {

namespace {

bool takes_memories(const Attention& how) {
  return how.window == 0 && how.chunk == 0 && how.sparse.block == 0;
}

mx::array joined(const std::vector<mx::array>& parts, int axis) {
  return parts.size() == 1 ? parts[0] : mx::concatenate(parts, axis);
}

/** x [G,N,D] as if at positions 0, 1, ..., or all at 0. */
mx::array rotated(const mx::array& x, const Rope& rope, bool contiguous) {
  std::vector<int> positions(x.shape(1), 0);
  if (contiguous) {
    std::iota(positions.begin(), positions.end(), 0);
  }
  auto [cos, sin] = rope.tables(positions, std::vector<int>(positions.size(), 0));
  auto turned = rope.rotate(mx::swapaxes(mx::astype(x, mx::float32), 0, 1), cos, sin);
  return mx::astype(mx::swapaxes(turned, 0, 1), x.dtype());
}

/** The same of codes. At 0 only the magnitude is to do, which scales can take; else they are coded anew. */
cpu::RecallRows rotated_codes(const cpu::RecallRows& x, const Rope& rope, bool contiguous) {
  const int group = cpu::kv_group_size(x.shape(2));
  if (contiguous || rope.dims % group != 0) {
    return cpu::RecallRows::coded(rotated(x.floats(), rope, contiguous));
  }
  auto turned = mx::less(mx::arange(x.shape(2) / group), mx::array(rope.dims / group));
  auto factor = mx::where(turned, mx::array(rope.magnitude), mx::array(1.0f));
  return {x.data, *x.scales * factor, *x.biases * factor};
}

/** queries float32 [G,M,D] -> float32 [G,M,N]. */
mx::array products_of(const mx::array& queries, const cpu::RecallRows& keys) {
  const auto dense = [&](const mx::array& floats) {
    return mx::matmul(queries, mx::swapaxes(mx::astype(floats, mx::float32), 1, 2));
  };
  if (!keys.is_coded()) {
    return dense(keys.data);
  }
  if (!on_cuda()) {
    const int group = cpu::kv_group_size(keys.shape(2));
    return mx::quantized_matmul(queries, keys.data, *keys.scales, keys.biases, true, group, 8);
  }
  // MLX's is wrong there where a row is one group (0.32.4), so few keys at a time become floats.
  constexpr int most_keys = 8192;
  std::vector<mx::array> parts;
  for (int n = 0; n < keys.shape(1); n += most_keys) {
    parts.push_back(
        dense(keys.changed([&](auto& x) {
                    return mx::slice(x, {0, n, 0}, {x.shape(0), std::min(n + most_keys, x.shape(1)), x.shape(2)});
                  })
                  .floats()));
  }
  return joined(parts, 2);
}

/** Each memory's block, int32 [N], counted through all texts, and how many there are. */
std::pair<mx::array, int> blocks_of(const cpu::RecallShape& shape, int memories) {
  std::vector<int32_t> blocks(memories);
  int next = 0;
  for (size_t text = 0; text < shape.starts->size(); ++text) {
    const int begin = shape.starts->at(text);
    const int end = text + 1 < shape.starts->size() ? shape.starts->at(text + 1) : memories;
    for (int n = begin; n < end; ++n) {
      blocks[n] = next + (n - begin) / shape.block;
    }
    next = blocks[end - 1] + 1;
  }
  return {mx::array(blocks.data(), {memories}, mx::int32), next};
}

/** cpu::recall in MLX's ops; arguments as there. */
mx::array recall_by_ops(
    const mx::array& q,
    const Memories::Ready& memories,
    const mx::array& local,
    const mx::array& masses,
    const cpu::RecallShape& shape,
    mx::array* record) {
  const int tokens = q.shape(0), heads = q.shape(1), dim = q.shape(2);
  const int groups = memories.keys.shape(0), count = memories.keys.shape(1), shared = heads / groups;
  const int v_dim = memories.values.shape(2);
  int top = std::min(shape.top_k, count);
  // [G, T*R, ..]
  auto rows = [&](const mx::array& x, int width) {
    auto parts = mx::reshape(x, {tokens, groups, shared, width});
    return mx::reshape(mx::swapaxes(parts, 0, 1), {groups, tokens * shared, width});
  };
  auto queries = rows(q, dim);
  auto products = products_of(queries, memories.keys);
  auto norms = mx::expand_dims(memories.inverse_norms, 1);
  auto ranks = shape.by_dot ? products : products * norms;
  auto lengths = mx::sqrt(mx::sum(mx::square(queries), -1, true));
  auto allowed = mx::array(true);
  if (shape.threshold) {
    allowed = mx::greater(products * norms, mx::array(*shape.threshold) * lengths);
  }
  auto scores = products * mx::array(shape.scale);
  if (shape.softcap > 0) {
    scores = mx::tanh(scores / shape.softcap) * shape.softcap;
  }
  std::optional<mx::array> chosen; // [G, T*R, top]
  if (top < count) {
    chosen = mx::slice(mx::argpartition(-ranks, top - 1, -1), {0, 0, 0}, {groups, tokens * shared, top});
  }
  if (shape.block > 1) { // all scores, of which those of whole blocks are allowed
    const auto [own_block, blocks] = blocks_of(shape, count);
    allowed = mx::broadcast_to(allowed, products.shape());
    auto hits = mx::broadcast_to(own_block, products.shape());
    if (chosen) {
      hits = mx::take(own_block, *chosen);
      allowed = mx::take_along_axis(allowed, *chosen, -1);
    }
    hits = mx::where(allowed, hits, mx::array(blocks)); // one more: of what the threshold leaves out
    auto taken = mx::zeros({groups, tokens * shared, blocks + 1}, mx::bool_);
    taken = mx::put_along_axis(taken, hits, mx::ones(hits.shape(), mx::bool_), -1);
    allowed = mx::take(taken, own_block, -1);
    chosen.reset();
    top = count;
  }
  scores = mx::where(allowed, scores, mx::array(-std::numeric_limits<float>::infinity()));
  if (chosen) {
    scores = mx::take_along_axis(scores, *chosen, -1);
  }
  auto own = rows(masses, 1);
  auto greatest = mx::maximum(own, mx::max(scores, -1, true));
  auto weights = mx::exp(scores - greatest);
  auto own_weight = mx::exp(own - greatest);
  auto total = own_weight + mx::sum(weights, -1, true);
  if (record) {
    auto places = chosen ? *chosen : mx::broadcast_to(mx::arange(top), weights.shape());
    auto cosines = mx::take_along_axis(products * norms, places, -1) / mx::maximum(lengths, mx::array(1e-12f));
    auto taken = mx::greater(scores, mx::array(-std::numeric_limits<float>::infinity()));
    const auto updates = [&](const mx::array& x) { // [T, H*top, 1, 1, 1]
      auto parts = mx::swapaxes(mx::reshape(x, {groups, tokens, shared, top}), 0, 1);
      return mx::reshape(parts, {tokens, heads * top, 1, 1, 1});
    };
    auto token = mx::expand_dims(mx::arange(tokens), 1);
    auto place = mx::reshape(updates(places), {tokens, heads * top});
    const auto indices = [&](int plane) {
      return std::vector<mx::array>{token, mx::full({1, 1}, plane, mx::int32), mx::astype(place, mx::int32)};
    };
    *record = mx::scatter_add(*record, indices(0), updates(weights / total), {0, 1, 2});
    *record = mx::scatter_max(*record, indices(1), updates(mx::where(taken, cosines, mx::array(-2.0f))), {0, 1, 2});
    *record = mx::scatter_add(*record, indices(2), updates(mx::astype(taken, mx::float32)), {0, 1, 2});
  }
  auto sums = [&] {
    const auto floats = [](const cpu::RecallRows& values) { return mx::astype(values.floats(), mx::float32); };
    if (!chosen) {
      return mx::matmul(weights, floats(memories.values));
    }
    auto places = mx::reshape(*chosen, {groups, tokens * shared * top, 1});
    auto found = floats(memories.values.changed([&](auto& x) { return mx::take_along_axis(x, places, 1); }));
    found = mx::reshape(found, {groups, tokens * shared, top, v_dim});
    return mx::squeeze(mx::matmul(mx::expand_dims(weights, 2), found), 2);
  }();
  auto out = (own_weight * mx::astype(rows(local, v_dim), mx::float32) + sums) / total;
  out = mx::swapaxes(mx::reshape(out, {groups, tokens, shared, v_dim}), 0, 1);
  return mx::astype(mx::reshape(out, {tokens, heads, v_dim}), local.dtype());
}

/** Tokens of a step that recall the same in the same way, all of them recorded or none. */
struct Group {
  const Recalled* recalled;
  std::vector<int> tokens; // places in the step
  std::shared_ptr<MemorySums> sums; // null: not recorded
};

// MLX's ops hold all scores of a chunk's queries: [H, tokens, N] floats of at most 64 MB.
constexpr size_t most_scores = 16 << 20;

/** What computes: kernels/cpu, kernels/cuda where it has a kernel, or MLX's ops. */
enum class By { cpu, cuda, ops };

class RecallLayer : public Cache {
 public:
  RecallLayer(int index, Caches& caches, const std::vector<Group>& groups, const int& tokens, By by)
      : index_(index), caches_(caches), groups_(groups), tokens_(tokens), by_(by) {}

  mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
    auto& cache = caches_.layer(index_);
    const bool any = takes_memories(how) &&
        std::any_of(groups_.begin(), groups_.end(), [&](const Group& group) { return memories(group, how); });
    if (!any) {
      return cache.attend(q, k, v, how);
    }
    auto [out, masses, rotated] = cache.attend_openly(q, k, v, how);
    for (auto& group : groups_) {
      auto* found = memories(group, how);
      if (!found) {
        continue;
      }
      if (static_cast<int>(group.tokens.size()) == tokens_) {
        return recall(rotated, *found, out, masses, group, how);
      }
      mx::array places(group.tokens.data(), {static_cast<int>(group.tokens.size())}, mx::int32);
      const auto part = [&](const mx::array& x) { return mx::take(x, places, 0); };
      auto more = recall(part(rotated), *found, part(out), part(masses), group, how);
      out = mx::scatter(out, places, mx::expand_dims(more, 1), 0);
    }
    return out;
  }

  Attended attend_openly(const mx::array&, const mx::array&, const mx::array&, const Attention&) override {
    fail(Kind::internal, "[kv] memories are the last that attention takes");
  }

  mx::array recur(const std::vector<mx::array>& inputs, const Recurrence& f) override {
    return caches_.layer(index_).recur(inputs, f);
  }

 private:
  const Memories::Ready* memories(const Group& group, const Attention& how) const {
    auto& rules = group.recalled->how;
    if (rules.top_k == 0 || (!rules.layers.empty() && !rules.layers[index_])) {
      return nullptr;
    }
    return group.recalled->memories->layer(index_, how.rope, rules.contiguous);
  }

  mx::array recall(
      const mx::array& q,
      const Memories::Ready& memories,
      const mx::array& local,
      const mx::array& masses,
      const Group& group,
      const Attention& how) const {
    const RecallHow& rules = group.recalled->how;
    const cpu::RecallShape shape{
        rules.top_k,
        how.scale,
        how.softcap,
        rules.by_dot,
        rules.threshold,
        rules.block_tokens,
        group.recalled->memories->starts()};
    const int tokens = q.shape(0);
    mx::array* record = nullptr;
    if (group.sums && index_ >= rules.record_from) {
      auto& all = group.sums->all;
      if (!all) {
        auto none = mx::array({0.0f, -2.0f, 0.0f}, {1, 3, 1}); // a cosine is greater
        all = mx::contiguous(mx::broadcast_to(none, {tokens, 3, memories.keys.shape(1)}));
      }
      group.sums->heads += q.shape(1);
      record = &*all;
    }
    if (by_ == By::cpu) {
      const auto* codes = memories.codes ? &*memories.codes : nullptr;
      return cpu::recall(
          q, memories.keys, memories.inverse_norms, memories.values, local, masses, shape, record, codes);
    }
    const auto& keys = memories.keys.data;
    const auto& values = memories.values.data;
    if (by_ == By::cuda && !memories.keys.is_coded() && cuda::recalls(q, keys, values, shape)) {
      return cuda::recall(q, keys, memories.inverse_norms, values, local, masses, shape, record);
    }
    const int most = std::max<int>(1, most_scores / (size_t(q.shape(1)) * memories.keys.shape(1)));
    std::vector<mx::array> parts, records;
    for (int t = 0; t < tokens; t += most) {
      const auto part = [&](const mx::array& x) { return rows(x, t, std::min(tokens, t + most)); };
      if (record) {
        records.push_back(part(*record));
      }
      parts.push_back(
          recall_by_ops(part(q), memories, part(local), part(masses), shape, record ? &records.back() : nullptr));
    }
    if (record) {
      *record = joined(records, 0);
    }
    return joined(parts, 0);
  }

  int index_;
  Caches& caches_;
  const std::vector<Group>& groups_;
  const int& tokens_; // of the step
  By by_;
};

class RecallCaches : public Caches {
 public:
  RecallCaches(std::unique_ptr<Caches> caches, int layers, By by) : caches_(std::move(caches)) {
    for (int i = 0; i < layers; ++i) {
      layers_.emplace_back(i, *caches_, groups_, tokens_, by);
    }
  }

  Cache& layer(int index) override {
    return groups_.empty() ? caches_->layer(index) : layers_.at(index);
  }

  void begin(std::vector<Span> spans) override {
    groups_.clear();
    held_.clear();
    tokens_ = 0;
    for (auto& span : spans) {
      tokens_ += span.count;
      if (!span.recalled || span.recalled->memories->tokens() == 0) {
        continue;
      }
      held_.push_back(span.recalled);
      span.shift = span.recalled->how.contiguous ? span.recalled->memories->tokens() : 0;
      for (int i = 0; i < span.count; ++i) {
        const bool recorded = span.record && i == span.count - 1;
        auto& group = group_of(*span.recalled, recorded);
        if (recorded) {
          *span.record = {group.sums, static_cast<int>(group.tokens.size())};
        }
        group.tokens.push_back(span.first + i);
      }
    }
    caches_->begin(std::move(spans));
  }

  const mx::array& positions() override {
    return caches_->positions();
  }

 private:
  Group& group_of(const Recalled& recalled, bool recorded) {
    for (auto& group : groups_) {
      const Recalled& known = *group.recalled;
      if ((group.sums != nullptr) == recorded && known.memories == recalled.memories && known.how == recalled.how) {
        return group;
      }
    }
    return groups_.emplace_back(Group{&recalled, {}, recorded ? std::make_shared<MemorySums>() : nullptr});
  }

  std::unique_ptr<Caches> caches_;
  std::vector<RecallLayer> layers_;
  std::vector<std::shared_ptr<const Recalled>> held_; // what groups_ points to
  std::vector<Group> groups_;
  int tokens_ = 0;
};

} // namespace

cpu::RecallRows joined(const std::vector<cpu::RecallRows>& parts) {
  const auto all = [&](auto array) {
    std::vector<mx::array> own;
    for (auto& part : parts) {
      own.push_back(array(part));
    }
    return joined(own, 1);
  };
  const auto data = all([](auto& part) { return part.data; });
  if (!parts[0].is_coded()) {
    return data;
  }
  return {data, all([](auto& part) { return *part.scales; }), all([](auto& part) { return *part.biases; })};
}

Memories::Memories(std::vector<std::shared_ptr<const Memory>> parts) : parts_(std::move(parts)) {
  std::vector<int32_t> starts;
  for (auto& part : parts_) {
    check(part->layers.size() == parts_[0]->layers.size(), "memories are of one model");
    if (!part->tokens.empty()) {
      starts.push_back(tokens_);
    }
    tokens_ += static_cast<int>(part->tokens.size());
  }
  starts_ = std::make_shared<const std::vector<int32_t>>(std::move(starts));
  std::erase_if(parts_, [](auto& part) { return part->tokens.empty(); });
  for (auto& ready : ready_) {
    ready.resize(parts_.empty() ? 0 : parts_[0]->layers.size());
  }
}

const Memories::Ready* Memories::layer(int index, const Rope* rope, bool contiguous) const {
  if (parts_.empty() || !parts_[0]->layers[index]) {
    return nullptr;
  }
  auto& ready = ready_[contiguous && rope][index];
  if (!ready) {
    std::vector<cpu::RecallRows> keys, values;
    for (auto& part : parts_) {
      keys.push_back(part->layers[index]->keys);
      values.push_back(part->layers[index]->values);
    }
    auto all = joined(keys);
    if (rope && (contiguous || rope->magnitude != 1)) {
      all = all.is_coded() ? rotated_codes(all, *rope, contiguous) : rotated(all.data, *rope, contiguous);
    }
    // A key of zeros is like nothing: it has cosine 0, not NaN.
    const auto floats = all.floats(); // of codes once, here; how they are rounded is within cpu::recall's slack
    auto lengths = mx::sqrt(mx::sum(mx::square(mx::astype(floats, mx::float32)), -1));
    auto inverse = mx::array(1.0f) / mx::maximum(lengths, mx::array(1e-12f));
    const auto whole = [](const cpu::RecallRows& rows) {
      return rows.changed([](auto& x) { return mx::contiguous(x); });
    };
    ready.emplace(Ready{whole(all), inverse, whole(joined(values)), {}});
    if (on_cpu()) {
      ready->codes = cpu::recall_codes(floats, ready->inverse_norms);
    }
  }
  return &*ready;
}

MemoryUse MemoryRecord::use() const {
  MemoryUse use{1, 0, {}};
  if (!sums || !sums->all) {
    return use;
  }
  const int count = sums->all->shape(2);
  const float* masses = sums->all->data<float>() + size_t{3} * place * count;
  const float *cosines = masses + count, *counts = cosines + count;
  const float heads = static_cast<float>(sums->heads);
  double all = 0;
  for (int n = 0; n < count; ++n) {
    if (counts[n] > 0) {
      use.memories.push_back({n, masses[n] / heads, cosines[n], static_cast<int32_t>(counts[n])});
      all += masses[n];
    }
  }
  use.mass = static_cast<float>(all / heads);
  return use;
}

std::string why_no_memories(const std::vector<CacheSpec>& layers) {
  for (auto& layer : layers) {
    if (!layer.states.empty()) {
      return "it has recurrent layers, which keep no keys";
    }
    if (layer.kv_heads == 1 && layer.head_dim > layer.v_head_dim) {
      return "it keeps latents instead of keys (MLA)";
    }
    if (layer.index_dim > 0) {
      return "its tokens attend to few positions, which each layer chooses";
    }
  }
  return "";
}

std::unique_ptr<Caches> make_recall_caches(std::unique_ptr<Caches> caches, int layers, bool mlx_ops) {
  const By by = mlx_ops ? By::ops : on_cpu() ? By::cpu : cuda_kernels() ? By::cuda : By::ops;
  return std::make_unique<RecallCaches>(std::move(caches), layers, by);
}

class RecordingCaches::Layer : public Cache {
 public:
  Layer(RecordingCaches& all, int index) : all_(all), index_(index) {}

  mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
    all_.rotates_ = all_.rotates_ || how.rope;
    if (takes_memories(how)) {
      all_.kept_[index_].emplace(MemoryLayer{mx::swapaxes(k, 0, 1), mx::swapaxes(v, 0, 1)});
    }
    return all_.caches_->layer(index_).attend(q, k, v, how);
  }

  mx::array recur(const std::vector<mx::array>& inputs, const Recurrence& f) override {
    return all_.caches_->layer(index_).recur(inputs, f);
  }

 private:
  RecordingCaches& all_;
  int index_;
};

RecordingCaches::RecordingCaches(std::unique_ptr<Caches> caches, int layers)
    : caches_(std::move(caches)), kept_(layers) {
  for (int i = 0; i < layers; ++i) {
    layers_.push_back(std::make_unique<Layer>(*this, i));
  }
}

RecordingCaches::~RecordingCaches() = default;

Cache& RecordingCaches::layer(int index) {
  return *layers_.at(index);
}

void RecordingCaches::begin(std::vector<Span> spans) {
  check(spans.size() == 1, "kv: one sequence is recorded at a time");
  caches_->begin(std::move(spans));
}

const mx::array& RecordingCaches::positions() {
  return caches_->positions();
}

std::vector<std::optional<MemoryLayer>> RecordingCaches::take() {
  return std::exchange(kept_, std::vector<std::optional<MemoryLayer>>(kept_.size()));
}

} // namespace parallm
