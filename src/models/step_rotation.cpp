#include "models/step_rotation.h"

#include "base/error.h"

namespace parallm {

StepRotation::StepRotation(Rope rope) : rope_(std::move(rope)) {
  if (rope_.original_length > 0) {
    fail(Kind::invalid, "[step_rotation] a dynamic RoPE is not supported here");
  }
}

void StepRotation::begin(const mx::array& positions) {
  auto frequencies = mx::array(rope_.inverse_frequencies.data(), {1, rope_.dims / 2});
  auto angles = mx::expand_dims(mx::astype(positions, mx::float32), 1) * frequencies;
  auto magnitude = mx::array(rope_.magnitude);
  tables_.emplace(mx::cos(angles) * magnitude, mx::sin(angles) * magnitude);
}

mx::array StepRotation::operator()(const mx::array& x) const {
  return rope_.rotate(x, tables_->first, tables_->second);
}

} // namespace parallm
