// Layers that have no keys and values of their own and attend to those of an
// earlier layer (Gemma 3n and 4; arXiv 2405.05254 tells why). Engine thread only.
#pragma once

#include "kv/cache.h"

#include <memory>
#include <optional>

namespace parallm {

/** What a layer with keys leaves for the later ones in a step. The blocks of both
 * hold it. */
class SharedKV {
 public:
  /** Attends in `cache`, which later layers then share. */
  mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, Cache& cache, const Attention& how) {
    last_.emplace(Last{&cache, k, v});
    return cache.attend(q, k, v, how);
  }

  /** Attends in the cache of the last layer that had keys. They are written once
   * more, where they stand already. */
  mx::array attend(const mx::array& q, const Attention& how) const {
    return last_->cache->attend(q, last_->k, last_->v, how);
  }

 private:
  struct Last {
    Cache* cache;
    mx::array k;
    mx::array v;
  };
  std::optional<Last> last_;
};

} // namespace parallm
