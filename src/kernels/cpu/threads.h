// The kernels' threads. The caller takes part: it runs whatever chunks no other
// thread has claimed, so a call ends even where every worker is asleep or has
// lost its core. Workers spin for some microseconds after a job (a step is a
// row of short kernels), giving up their core to whoever wants it, then sleep.
// Any thread may call; if two do at once, the second one runs its chunks alone.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

namespace parallm::cpu {

namespace detail {
void run_chunks(size_t count, void (*run)(void*, size_t), void* context);
}

/** run(i) for each i in [0, count), in no order, on several threads; returns
 * when all are done. `run` must not throw. */
template <class F>
void parallel_for(size_t count, F&& run) {
  using Function = std::remove_reference_t<F>;
  detail::run_chunks(
      count,
      [](void* context, size_t i) { (*static_cast<Function*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&run)));
}

/** A float buffer of the calling thread, 64-byte aligned, at least `count`
 * long. It stays until the thread ends; `slot` tells apart buffers that live at
 * the same time. */
float* thread_scratch(int slot, size_t count);

/** Threads in use, the caller included (ops.h). */
int threads();

constexpr size_t round_up(size_t value, size_t step) {
  return (value + step - 1) / step * step;
}

} // namespace parallm::cpu
