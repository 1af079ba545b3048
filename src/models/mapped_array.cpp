#include "models/mapped_array.h"

#include "base/error.h"

#include <mlx/backend/cuda/cuda.h>
#include <mlx/backend/metal/metal.h>

#include <cstring>

namespace parallm {

namespace {

/** MLX's CPU allocator (backend/no_gpu/allocator.cpp) has no make_buffer, so that array's constructor from a pointer
 * copies. Its buffers begin with their size, and raw_ptr steps over it; where the library at hand does that, a buffer
 * that points this far before foreign bytes stands for them. 0: it doesn't. */
size_t bytes_before_data() {
  static const size_t bytes = [] {
    if (mx::metal::is_available() || mx::cu::is_available()) {
      return size_t(0);
    }
    auto probe = mx::allocator::malloc(64);
    auto buffer = probe.buffer();
    auto* raw = static_cast<char*>(buffer.raw_ptr());
    auto* start = static_cast<char*>(buffer.ptr());
    size_t size = 0;
    if (raw - start != sizeof(size_t)) {
      return size_t(0);
    }
    std::memcpy(&size, start, sizeof(size));
    return size == 64 ? sizeof(size_t) : size_t(0);
  }();
  return bytes;
}

} // namespace

mx::array mapped_array(std::shared_ptr<const MappedFile> file, size_t offset, mx::Shape shape, mx::Dtype dtype) {
  size_t bytes = size_of(dtype);
  for (auto dim : shape) {
    bytes *= dim;
  }
  check(bytes <= file->size() && offset <= file->size() - bytes, "mapped_array: the tensor lies in the file");
  auto* from = const_cast<std::byte*>(file->data()) + offset;
  size_t before = bytes_before_data();
  if (before > 0 && offset >= before && reinterpret_cast<uintptr_t>(from) % size_of(dtype) == 0) {
    mx::allocator::Buffer buffer(from - before);
    // The allocator's size of it is whatever stands before it in the file, so MLX may think that it could reuse the
    // bytes for an op's output: MappedFile's pages are private copies when written.
    return mx::array(mx::allocator::Data(buffer, [file](mx::allocator::Buffer) {}), std::move(shape), dtype);
  }
  auto data = mx::allocator::malloc(bytes);
  std::memcpy(data.buffer().raw_ptr(), from, bytes);
  file->drop(offset, bytes);
  return mx::array(std::move(data), std::move(shape), dtype);
}

} // namespace parallm
