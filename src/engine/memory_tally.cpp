#include "engine/memory_tally.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace parallm {

void MemoryTally::add(const MemoryUse& use) {
  sum_.queries += use.queries;
  sum_.mass += use.mass;
  auto& all = sum_.memories;
  for (const UsedMemory& used : use.memories) {
    while (static_cast<int32_t>(all.size()) <= used.memory) {
      all.push_back({static_cast<int32_t>(all.size()), 0, 0, 0});
    }
    UsedMemory& sum = all[used.memory];
    sum.mass += used.mass;
    sum.cosine = sum.count > 0 ? std::max(sum.cosine, used.cosine) : used.cosine;
    sum.count += used.count;
  }
}

MemoryUse MemoryTally::take() {
  std::erase_if(sum_.memories, [](const UsedMemory& used) { return used.count == 0; });
  return std::exchange(sum_, {});
}

MemoryUse most_used(MemoryUse use, size_t count, const std::vector<float>* background) {
  const auto cited = [&](const UsedMemory& used) {
    const bool known = background && used.memory < static_cast<int32_t>(background->size());
    return cited_mass(used, use.queries, known ? (*background)[used.memory] : 0);
  };
  const auto more = [&](const UsedMemory& a, const UsedMemory& b) {
    return std::tuple(-cited(a), -a.mass, a.memory) < std::tuple(-cited(b), -b.mass, b.memory);
  };
  auto& all = use.memories;
  const auto end = all.begin() + std::min(count, all.size());
  std::partial_sort(all.begin(), end, all.end(), more);
  all.erase(end, all.end());
  return use;
}

} // namespace parallm
