// RoPE for layers that rotate q and k themselves, before a norm with weights or a
// recurrence, where the cache can't. Engine thread only.
#pragma once

#include "nn/rope.h"

#include <memory>
#include <optional>

namespace parallm {

class StepRotation {
 public:
  /** Errors: invalid, for a "dynamic" RoPE, whose frequencies depend on the sequence's length. */
  explicit StepRotation(Rope rope);

  /** positions int32 [T], of the step that follows. */
  void begin(const mx::array& positions);
  /** x [T,H,D], rotated. */
  mx::array operator()(const mx::array& x) const;

 private:
  Rope rope_;
  std::optional<std::pair<mx::array, mx::array>> tables_; // cos and sin [T,dims/2]
};

} // namespace parallm
