// A step's numbers on their way to the GPU. MLX's arrays of the host are managed memory, whose pages move at the
// kernel's first touch, some 80 microseconds each, and back when the host writes them again. Here they lie in memory
// that stays with the host, which the GPU reads over the bus, once: a kernel copies them.
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/ops.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>

namespace parallm::cuda {

namespace {

/** cuMemAdvise of CUDA's driver, in its first form (CUDA Driver API, "Unified Addressing"). Without it pages move. */
void keep_on_host(void* memory, size_t bytes) {
  using Advise = int (*)(unsigned long long address, size_t bytes, int advice, int device);
  static const auto advise = [] {
    void* driver = dlopen("libcuda.so.1", RTLD_LAZY);
    return reinterpret_cast<Advise>(driver ? dlsym(driver, "cuMemAdvise") : nullptr);
  }();
  constexpr int preferred_location = 3, accessed_by = 5, host = -1, gpu = 0;
  if (advise) {
    auto address = reinterpret_cast<unsigned long long>(memory);
    advise(address, bytes, preferred_location, host);
    advise(address, bytes, accessed_by, gpu);
  }
}

/** Memory for one array at a time, of a power of two bytes. */
struct Slot {
  mx::allocator::Buffer buffer;
  size_t bytes;
  std::atomic<bool> taken = false; // MLX gives it back on a thread of its own
};

/** A free one. They are never given back: as many as steps in flight need. */
Slot& slot_of(size_t bytes) {
  thread_local auto& slots = *new std::vector<std::unique_ptr<Slot>>; // MLX's threads may outlive this one
  bytes = std::bit_ceil(std::max<size_t>(bytes, 4096)); // a page
  auto found = std::find_if(slots.begin(), slots.end(), [&](auto& slot) {
    return slot->bytes == bytes && !slot->taken.load(std::memory_order_acquire);
  });
  if (found == slots.end()) {
    auto buffer = mx::allocator::allocator().malloc(bytes);
    keep_on_host(buffer.raw_ptr(), bytes);
    slots.push_back(std::make_unique<Slot>(buffer, bytes));
    found = slots.end() - 1;
  }
  (*found)->taken.store(true, std::memory_order_relaxed);
  return **found;
}

constexpr const char* copy = R"cu(
const int i = blockIdx.x * blockDim.x + threadIdx.x;
if (i < from_shape[0]) out[i] = from[i];
)cu";

} // namespace

mx::array upload(const void* values, mx::Shape shape, mx::Dtype type) {
  thread_local const Kernel kernel("upload", {"from"}, {"out"}, copy);
  int count = 1;
  for (auto dim : shape) {
    count *= dim;
  }
  if (count == 0) {
    return mx::zeros(std::move(shape), type);
  }
  const size_t bytes = count * type.size();
  auto& slot = slot_of(bytes);
  std::memcpy(slot.buffer.raw_ptr(), values, bytes);
  mx::array on_host(
      mx::allocator::Data(
          slot.buffer, [&slot](mx::allocator::Buffer) { slot.taken.store(false, std::memory_order_release); }),
      {count},
      type);
  const auto on_gpu = [&](mx::Shape as) {
    return kernel({on_host}, {std::move(as)}, {type}, {(count + 255) / 256 * 256, 1, 1}, {256, 1, 1}, {})[0];
  };
  // MLX keeps up to 8 bytes in managed memory, which each layer of a step would read.
  const int least = 16 / type.size();
  return count >= least ? on_gpu(std::move(shape)) : mx::reshape(mx::slice(on_gpu({least}), {0}, {count}), shape);
}

} // namespace parallm::cuda
