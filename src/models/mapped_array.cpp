#include "models/mapped_array.h"

#include "base/error.h"

#include <cstdint>
#include <cstring>

namespace parallm {

namespace {

/** MLX's CPU allocator (backend/no_gpu/allocator.cpp) has no make_buffer, so that array's constructor from a pointer
 * copies. Its buffers begin with their size, and raw_ptr steps over it; where the library at hand does that, a buffer
 * that points this far before foreign bytes stands for them. 0: it doesn't. */
size_t bytes_before_data() {
  static const size_t bytes = [] {
    if (mx::is_available(mx::Device::gpu)) {
      return size_t(0);
    }
    const auto probe = mx::allocator::malloc(64);
    auto buffer = probe.buffer();
    const auto* start = static_cast<const char*>(buffer.ptr());
    size_t size = 0;
    if (static_cast<const char*>(buffer.raw_ptr()) - start != sizeof(size)) {
      return size_t(0);
    }
    std::memcpy(&size, start, sizeof(size));
    return size >= 64 ? sizeof(size) : size_t(0); // greater where it is one used before
  }();
  return bytes;
}

size_t bytes(const mx::Shape& shape, mx::Dtype dtype) {
  size_t size = mx::size_of(dtype);
  for (auto n : shape) {
    size *= n;
  }
  return size;
}

} // namespace

mx::array mapped_array(std::shared_ptr<const MappedFile> file, size_t offset, mx::Shape shape, mx::Dtype dtype) {
  const size_t size = bytes(shape, dtype);
  check(offset <= file->size() && size <= file->size() - offset, "mapped_array: within the file");
  auto* data = const_cast<std::byte*>(file->data()) + offset;
  const bool aligned = reinterpret_cast<uintptr_t>(data) % mx::size_of(dtype) == 0;
  const size_t before = bytes_before_data();
  if (!aligned || before == 0 || offset < before) {
    auto copy = mx::allocator::malloc(size);
    std::memcpy(copy.buffer().raw_ptr(), data, size);
    file->drop(offset, size);
    return mx::array(std::move(copy), std::move(shape), dtype);
  }
  const auto done = [file, offset, size](mx::allocator::Buffer) { file->drop(offset, size); };
  return mx::array(mx::allocator::Data(mx::allocator::Buffer(data - before), done), std::move(shape), dtype);
}

} // namespace parallm
