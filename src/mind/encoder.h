// What a model does for memories (Extended Mind, arXiv 2406.02332): it reads a
// text into keys and values, writes them down, and puts several texts together
// for a request. No tensor is seen here: library/encoder.cpp does it with the
// engine, tests have a fake. Thread-safe; calls block while the engine works,
// between its steps. Errors: what the engine throws (unavailable at its end).
#pragma once

#include "engine/plan.h"
#include "kv/recall_how.h"
#include "memory/tensors.h"

#include <functional>

namespace parallm {

struct Memory; // kv/recall.h: what a model made of one text
class Memories; // several of them, one after another

struct Reading {
  std::vector<int32_t> ids; // all that is read
  int dropped_first = 0; // so many of them at the beginning are read and not kept: BOS, a header
  std::vector<int32_t> dropped; // tokens that are read and kept nowhere: special ones
  int stride = 512; // new tokens of each window of a long text after the first
  int max_length = 3072; // tokens of a window: the context that they are read in
};

/** A memory as the bytes of a safetensors file. */
struct MemoryBytes {
  std::shared_ptr<const void> owner; // of what the pieces point to
  Pieces pieces;
};

class MemoryEncoder {
 public:
  virtual ~MemoryEncoder() = default;

  /** Stands for the weights and all else that keys and values depend on: under another one they are stale. */
  virtual std::string fingerprint() const = 0;
  virtual int layers() const = 0;
  virtual int vocabulary() const = 0;
  /** The longest window. */
  virtual int max_context() const = 0;

  /** `progress` is called between steps with the count of tokens that are read; what it throws ends the reading.
   * Errors: invalid, where no token would be kept, or an option is out of range (`param` names it). */
  virtual std::shared_ptr<const Memory> read(Reading reading, const std::function<void(int)>& progress) = 0;
  /** Parts of `memory`: for each its first token, counted among those that were kept, and how many. */
  virtual std::vector<std::shared_ptr<const Memory>> split(
      std::shared_ptr<const Memory> memory,
      const std::vector<std::pair<int, int>>& parts) = 0;

  virtual MemoryBytes bytes(std::shared_ptr<const Memory> memory) = 0;
  /** From a file of such bytes, which may be removed afterwards. Errors: invalid, where it is no memory of this model.
   */
  virtual std::shared_ptr<const Memory> open(const std::string& path) = 0;

  virtual int tokens(const Memory& memory) const = 0;
  /** Bytes of one token's keys and values, in all layers. */
  virtual size_t token_bytes() const = 0;
  /** Stands for the text when documents are chosen, compared by cosine. */
  virtual std::vector<float> embedding(std::shared_ptr<const Memory> memory) = 0;

  /** Of each memory of the joined ones: the mean attention that it gets from prompts that have nothing to do with it
   * (engine/background.h), for citations. */
  virtual std::vector<float> background(std::shared_ptr<const Memories> memories, const RecallHow& how) = 0;

  virtual std::shared_ptr<const Memories> join(std::vector<std::shared_ptr<const Memory>> parts) = 0;
  /** `key`: Recall::key. */
  virtual Recall recall(std::shared_ptr<const Memories> memories, RecallHow how, std::string key) = 0;
};

} // namespace parallm
