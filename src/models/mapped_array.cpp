#include "models/mapped_array.h"

#include "base/error.h"

#include <array>
#include <cstdint>
#include <cstring>

namespace parallm {

namespace {

/** MLX's CPU builds keep a buffer's size in the word before its data and offer no public way to wrap foreign memory
 * (make_buffer gives null, so array's constructor copies). True where a buffer made of a pointer is read so. */
bool buffers_start_before_data() {
#ifdef __APPLE__
  return false; // a buffer is a Metal object there
#else
  static const bool so = [] {
    if (mx::is_available(mx::Device::gpu)) {
      return false;
    }
    std::array<uint64_t, 64> words{}; // more than any kind of buffer object reads
    return mx::allocator::Buffer(words.data()).raw_ptr() == words.data() + 1;
  }();
  return so;
#endif
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
  const auto done = [file, offset, size](auto&&) { file->drop(offset, size); };
  if (!aligned || size == 0) {
    mx::allocator::Data copy = mx::allocator::malloc(size);
    std::memcpy(copy.buffer().raw_ptr(), data, size);
    done(data);
    return mx::array(std::move(copy), std::move(shape), dtype);
  }
  if (!buffers_start_before_data() || offset < sizeof(uint64_t)) {
    return mx::array(data, std::move(shape), dtype, done); // copies where it must
  }
  mx::allocator::Buffer buffer(data - sizeof(uint64_t));
  return mx::array(mx::allocator::Data(buffer, done), std::move(shape), dtype);
}

} // namespace parallm
