// What a row's tokens gave to its memories, added up as they come. No tensor, no thread.
#pragma once

#include "engine/plan.h"

namespace parallm {

class MemoryTally {
 public:
  void add(const MemoryUse& use);
  /** The sum of all that was added, memories in rising order; empty from then on. */
  MemoryUse take();

 private:
  MemoryUse sum_; // its memories: each at its own place, count 0 where it was never chosen
};

/** Memories that an event tells of a token. */
constexpr size_t most_told = 32;

/** `use` with the `count` memories alone whose cited_mass (then mass) is most, falling. `background`: Recall's. */
MemoryUse most_used(MemoryUse use, size_t count, const std::vector<float>* background = nullptr);

} // namespace parallm
