#include "nn/rounding.h"

#include <cmath>

namespace parallm {

namespace {

mx::array in_blocks(const mx::array& x, int block) {
  return mx::unflatten(mx::astype(x, mx::float32), -1, {x.shape(-1) / block, block});
}

mx::array power_of_two_above(const mx::array& x) {
  return mx::power(mx::array(2.0f), mx::ceil(mx::log2(x)));
}

} // namespace

mx::array round_to_fp8(const mx::array& x, int block) {
  if (x.shape(-1) % block != 0) {
    return x;
  }
  auto blocks = in_blocks(x, block);
  auto greatest = mx::maximum(mx::max(mx::abs(blocks), -1, true), mx::array(1e-4f));
  auto scale = power_of_two_above(greatest / mx::array(448.0f));
  auto codes = mx::to_fp8(mx::clip(blocks / scale, mx::array(-448.0f), mx::array(448.0f)));
  return mx::astype(mx::reshape(mx::from_fp8(codes, mx::float32) * scale, x.shape()), x.dtype());
}

mx::array round_to_fp4(const mx::array& x, int block, bool e4m3_scale) {
  if (x.shape(-1) % block != 0) {
    return x;
  }
  auto blocks = in_blocks(x, block);
  const float least = 6 * std::pow(2.0f, e4m3_scale ? -9.0f : -126.0f);
  auto sixth = mx::maximum(mx::max(mx::abs(blocks), -1, true), mx::array(least)) / mx::array(6.0f);
  auto scale = e4m3_scale ? mx::from_fp8(mx::to_fp8(sixth), mx::float32) : power_of_two_above(sixth);
  auto scaled = mx::clip(blocks / scale, mx::array(-6.0f), mx::array(6.0f));
  auto size = mx::abs(scaled), code = mx::zeros(size.shape(), mx::int32);
  for (float above : {0.25f, 1.25f, 2.5f, 5.0f}) {
    code = code + mx::astype(mx::greater(size, mx::array(above)), mx::int32);
  }
  for (float from : {0.75f, 1.75f, 3.5f}) {
    code = code + mx::astype(mx::greater_equal(size, mx::array(from)), mx::int32);
  }
  auto values = mx::take(mx::array({0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f}), code);
  return mx::astype(mx::reshape(mx::sign(scaled) * values * scale, x.shape()), x.dtype());
}

} // namespace parallm
