// Clang's thread-safety annotations
// (clang.llvm.org/docs/ThreadSafetyAnalysis.html), empty for other compilers,
// and the mutex and lock that carry them: libstdc++'s own are not annotated, so
// that the analysis can't see them.
#pragma once

#include <condition_variable>
#include <mutex>

#if defined(__clang__)
#define PARALLM_THREAD(x) __attribute__((x))
#else
#define PARALLM_THREAD(x)
#endif

#define GUARDED_BY(mutex) PARALLM_THREAD(guarded_by(mutex))
#define REQUIRES(...) PARALLM_THREAD(requires_capability(__VA_ARGS__))
#define EXCLUDES(...) PARALLM_THREAD(locks_excluded(__VA_ARGS__))

namespace parallm {

class PARALLM_THREAD(capability("mutex")) Mutex {
 public:
  void lock() PARALLM_THREAD(acquire_capability()) {
    mutex_.lock();
  }
  void unlock() PARALLM_THREAD(release_capability()) {
    mutex_.unlock();
  }

 private:
  friend class Lock;
  std::mutex mutex_;
};

/** Holds a Mutex for its scope; what a condition waits with. */
class PARALLM_THREAD(scoped_lockable) Lock {
 public:
  explicit Lock(Mutex& mutex) PARALLM_THREAD(acquire_capability(mutex)) : lock_(mutex.mutex_) {}
  ~Lock() PARALLM_THREAD(release_capability()) {}
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

  /** Waits, the mutex released meanwhile. Callers loop on what they wait for.
   */
  void wait(std::condition_variable& condition) {
    condition.wait(lock_);
  }
  template <typename Time>
  std::cv_status wait_until(std::condition_variable& condition, const Time& time) {
    return condition.wait_until(lock_, time);
  }

 private:
  std::unique_lock<std::mutex> lock_;
};

} // namespace parallm
