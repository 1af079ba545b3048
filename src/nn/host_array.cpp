#include "nn/host_array.h"

#include "kernels/cuda/ops.h"
#include "nn/device.h"

namespace parallm {

namespace {

size_t bytes_of(const mx::Shape& shape, mx::Dtype type) {
  size_t bytes = type.size();
  for (auto dim : shape) {
    bytes *= dim;
  }
  return bytes;
}

} // namespace

mx::array host_array(const void* values, mx::Shape shape, mx::Dtype type) {
  if (cuda_kernels()) {
    return cuda::upload(values, std::move(shape), type);
  }
  auto memory = mx::allocator::malloc(bytes_of(shape, type));
  std::copy_n(static_cast<const char*>(values), bytes_of(shape, type), static_cast<char*>(memory.buffer().raw_ptr()));
  return mx::array(std::move(memory), std::move(shape), type);
}

} // namespace parallm
