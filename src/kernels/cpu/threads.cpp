#include "kernels/cpu/threads.h"
#include "kernels/cpu/ops.h"

#include <hwy/aligned_allocator.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <mutex>
#include <string>
#include <thread>

namespace parallm::cpu {
namespace {

constexpr int max_threads = 1024;
constexpr auto spin_time = std::chrono::microseconds(60);

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/** Waits for `done()` for at most spin_time, leaving the core to others now and
 * then. */
template <class F>
bool spin_until(F&& done) {
  const auto end = std::chrono::steady_clock::now() + spin_time;
  do {
    for (int i = 0; i < 64; i++) {
      if (done()) {
        return true;
      }
      relax();
    }
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

class Pool {
 public:
  Pool() : threads_(threads_at_start()) {}

  int threads() const {
    return threads_.load(std::memory_order_relaxed);
  }

  void set_threads(int count) {
    if (count < 1 || count > max_threads) {
      throw std::invalid_argument("[set_threads] the count must be from 1 to 1024; got " + std::to_string(count));
    }
    threads_ = count;
  }

  void run(size_t count, void (*run)(void*, size_t), void* context) {
    std::unique_lock lock(mutex_, std::defer_lock);
    if (count < 2 || threads() < 2 || count > UINT32_MAX || !lock.try_lock()) {
      for (size_t i = 0; i < count; i++) {
        run(context, i);
      }
      return;
    }
    start_workers();
    run_ = run;
    context_ = context;
    finished_.store(0, std::memory_order_relaxed);
    claims_.store(static_cast<uint64_t>(count) << 32, std::memory_order_release);
    job_.fetch_add(1);
    job_.notify_all();
    work();
    if (!spin_until([&] { return finished_.load() == count; })) {
      for (uint32_t seen; (seen = finished_.load()) != count;) {
        finished_.wait(seen);
      }
    }
  }

 private:
  static int threads_at_start() {
    if (const char* text = std::getenv("PARALLM_THREADS")) {
      char* end = nullptr;
      const long count = std::strtol(text, &end, 10);
      if (end == text || *end || count < 1 || count > max_threads) {
        throw std::invalid_argument(
            std::string("[threads] PARALLM_THREADS must be a whole number from 1 to 1024; got ") + text);
      }
      return static_cast<int>(count);
    }
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }

  // Under mutex_. Workers are never joined: the pool outlives main, as kernels
  // may run on MLX's threads until the end.
  void start_workers() {
    for (; started_ < threads() - 1; started_++) {
      std::thread(&Pool::serve, this, started_).detach();
    }
  }

  /** Claims and runs chunks until none is left. A job ends only when all claimed chunks are counted as finished, so
   * what it consists of may be read after a claim. One who comes late claims of the next job, or in vain. */
  void work() {
    uint32_t chunk, count, done = 0;
    do {
      const uint64_t claim = claims_.fetch_add(1, std::memory_order_acq_rel);
      chunk = static_cast<uint32_t>(claim);
      count = static_cast<uint32_t>(claim >> 32);
      if (chunk >= count) {
        break;
      }
      run_(context_, chunk);
      done++;
    } while (chunk + 1 < count);
    if (done > 0 && finished_.fetch_add(done) + done == count) {
      finished_.notify_one();
    }
  }

  void serve(int index) {
    for (uint32_t seen = 0;;) {
      const auto idle = [&] { return job_.load() == seen; };
      if (!spin_until([&] { return !idle(); })) {
        job_.wait(seen);
        continue;
      }
      seen = job_.load();
      if (index < threads() - 1) {
        work();
      }
    }
  }

  std::mutex mutex_; // held by the thread whose job runs
  int started_ = 0;
  std::atomic<int> threads_;

  void (*run_)(void*, size_t) = nullptr;
  void* context_ = nullptr;

  alignas(64) std::atomic<uint64_t> claims_{0}; // of the job: its chunks in the high half, claims so far in the low one
  alignas(64) std::atomic<uint32_t> finished_{0};
  alignas(64) std::atomic<uint32_t> job_{0}; // counts jobs; what sleepers wait on
};

Pool& pool() {
  static Pool& pool = *new Pool;
  return pool;
}

} // namespace

namespace detail {
void run_chunks(size_t count, void (*run)(void*, size_t), void* context) {
  pool().run(count, run, context);
}
} // namespace detail

float* thread_scratch(int slot, size_t count) {
  struct Buffer {
    hwy::AlignedFreeUniquePtr<float[]> data;
    size_t size = 0;
  };
  thread_local std::array<Buffer, 8> buffers;
  auto& buffer = buffers.at(slot);
  if (buffer.size < count) {
    buffer.size = round_up(count, 4096);
    buffer.data = hwy::AllocateAligned<float>(buffer.size);
  }
  return buffer.data.get();
}

int threads() {
  return pool().threads();
}

void set_threads(int count) {
  pool().set_threads(count);
}

} // namespace parallm::cpu
