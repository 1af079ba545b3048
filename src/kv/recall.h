// Extended Mind attention (arXiv 2406.02332): keys and values that a model made
// of other texts, its memories, take part in the softmax of every query, the
// most similar ones alone. Caches of this file wrap others; rows of a step have
// memories of their own, or none, and those without get what the wrapped cache
// gives, bit for bit. Layers with a window or chunks stay as they are. Engine
// thread only, but for holding and dropping the pointers.
#pragma once

#include "kernels/cpu/ops.h"
#include "kv/cache.h"
#include "kv/recall_how.h"

#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

/** A layer's memories: keys before RoPE, after norms. */
struct MemoryLayer {
  cpu::RecallRows keys; // [G,N,D]
  cpu::RecallRows values; // [G,N,Dv]; codes where keys are
};

/** One after another along N. */
cpu::RecallRows joined(const std::vector<cpu::RecallRows>& parts);

/** What a model made of one text. */
struct Memory {
  std::vector<int32_t> tokens; // N: one for each memory
  std::vector<std::optional<MemoryLayer>> layers; // nothing where a layer takes no memories
};

/** Some texts' memories one after another, as layers read them. Made ready
 * layer by layer, when first read; requests with the same texts share it. */
class Memories {
 public:
  explicit Memories(std::vector<std::shared_ptr<const Memory>> parts);

  struct Ready {
    cpu::RecallRows keys; // [G,N,D], rotated where contiguous
    mx::array inverse_norms; // float32 [G,N]
    cpu::RecallRows values; // [G,N,Dv]
    std::optional<cpu::RecallCodes> codes; // on CPUs, of the keys
  };
  /** Null where the layer has none. */
  const Ready* layer(int index, const Rope* rope, bool contiguous) const;
  int tokens() const {
    return tokens_;
  }
  /** Each text's first memory. */
  const std::shared_ptr<const std::vector<int32_t>>& starts() const {
    return starts_;
  }

 private:
  std::vector<std::shared_ptr<const Memory>> parts_;
  int tokens_ = 0;
  std::shared_ptr<const std::vector<int32_t>> starts_;
  mutable std::vector<std::optional<Ready>> ready_[2]; // by `contiguous`
};

/** What a row recalls, and how. */
class Recalled {
 public:
  Recalled(std::shared_ptr<const Memories> memories, RecallHow how)
      : memories(std::move(memories)), how(std::move(how)) {}

  const std::shared_ptr<const Memories> memories;
  const RecallHow how;
};

/** What the queries of a step that recall the same give to their memories, on the device. */
struct MemorySums {
  std::optional<mx::array> all; // float32 [queries,3,N]: mass summed over heads and layers, greatest cosine, count
  int heads = 0; // over the recorded layers
};

/** What one query gives: Span::record, made for one step. Once the layers have run, `sums` says what to evaluate. */
struct MemoryRecord {
  std::shared_ptr<MemorySums> sums; // null: it has no memories
  int place = 0; // of the query among them

  /** Once `sums->all` is evaluated; memories in rising order. */
  MemoryUse use() const;
};

/** Why a model of these layers takes no memories; empty: it does. */
std::string why_no_memories(const std::vector<CacheSpec>& layers);

/** Spans' `recalled` works in these. `mlx_ops`: as make_paged_caches. */
std::unique_ptr<Caches> make_recall_caches(std::unique_ptr<Caches> caches, int layers, bool mlx_ops = false);

/** Keeps what the layers write in a step of one sequence. */
class RecordingCaches : public Caches {
 public:
  RecordingCaches(std::unique_ptr<Caches> caches, int layers);
  ~RecordingCaches() override;

  Cache& layer(int index) override;
  void begin(std::vector<Span> spans) override;
  const mx::array& positions() override;

  /** The last step's keys and values [G,T,D] by layer, nothing where one takes no memories. */
  std::vector<std::optional<MemoryLayer>> take();
  /** Whether a layer had its keys rotated by the cache. */
  bool rotates() const {
    return rotates_;
  }

 private:
  class Layer;
  std::unique_ptr<Caches> caches_;
  std::vector<std::unique_ptr<Layer>> layers_;
  std::vector<std::optional<MemoryLayer>> kept_;
  bool rotates_ = false;
};

} // namespace parallm
