// What the threads of one fetch share: the order to stop, counts for the user, lines for the user. Thread-safe.
#pragma once

#include "base/thread_annotations.h"
#include "hub/hub.h"

#include <atomic>
#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace parallm {

class FetchState {
 public:
  void stop() EXCLUDES(mutex_) {
    stopped_ = true;
    Lock lock(mutex_);
    wake_.notify_all();
  }
  const std::atomic<bool>& stopped() const {
    return stopped_;
  }

  /** False where it was cut short by stop(). */
  bool sleep(double seconds) EXCLUDES(mutex_) {
    const auto end = std::chrono::steady_clock::now() +
        std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::duration<double>(seconds));
    Lock lock(mutex_);
    while (!stopped_ && lock.wait_until(wake_, end) != std::cv_status::timeout) {
    }
    return !stopped_;
  }

  void warn(std::string line) EXCLUDES(mutex_) {
    Lock lock(mutex_);
    warnings_.push_back(std::move(line));
  }
  std::vector<std::string> take_warnings() EXCLUDES(mutex_) {
    Lock lock(mutex_);
    return std::exchange(warnings_, {});
  }

  std::atomic<size_t> files = 0, files_done = 0;
  std::atomic<uint64_t> bytes = 0, found_bytes = 0, total_bytes = 0;

 private:
  Mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::string> warnings_ GUARDED_BY(mutex_);
  std::atomic<bool> stopped_ = false;
};

} // namespace parallm
