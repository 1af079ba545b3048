// A bounded queue between threads: any number of writers and readers.
// Thread-safe.
#pragma once

#include "base/thread_annotations.h"

#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

namespace parallm {

enum class Push { done, full, closed };

template <typename T>
class Channel {
 public:
  explicit Channel(size_t capacity) : capacity_(capacity) {}

  /** Never waits. `value` is moved from only where the answer is `done`. */
  Push try_push(T& value) EXCLUDES(mutex_) {
    Lock lock(mutex_);
    return place(value);
  }

  /** Waits for room. `done` or `closed`; `value` is moved from only where it is
   * `done`. */
  Push push(T& value) EXCLUDES(mutex_) {
    Lock lock(mutex_);
    while (!closed_ && items_.size() >= capacity_) {
      lock.wait(room_);
    }
    return place(value);
  }

  /** Waits for an item. Empty once the channel is closed and all its items are
   * taken. */
  std::optional<T> pop() EXCLUDES(mutex_) {
    Lock lock(mutex_);
    while (!closed_ && items_.empty()) {
      lock.wait(item_);
    }
    return take();
  }

  std::optional<T> try_pop() EXCLUDES(mutex_) {
    Lock lock(mutex_);
    return take();
  }

  /** Refuses pushes from now on and wakes everyone who waits. What is inside
   * can still be taken. */
  void close() EXCLUDES(mutex_) {
    Lock lock(mutex_);
    closed_ = true;
    item_.notify_all();
    room_.notify_all();
  }

  bool closed() const EXCLUDES(mutex_) {
    Lock lock(mutex_);
    return closed_;
  }

 private:
  Push place(T& value) REQUIRES(mutex_) {
    if (closed_) {
      return Push::closed;
    }
    if (items_.size() >= capacity_) {
      return Push::full;
    }
    items_.push_back(std::move(value));
    item_.notify_one();
    return Push::done;
  }

  std::optional<T> take() REQUIRES(mutex_) {
    if (items_.empty()) {
      return std::nullopt;
    }
    std::optional<T> item = std::move(items_.front());
    items_.pop_front();
    room_.notify_one();
    return item;
  }

  mutable Mutex mutex_;
  std::condition_variable item_;
  std::condition_variable room_;
  std::deque<T> items_ GUARDED_BY(mutex_);
  const size_t capacity_;
  bool closed_ GUARDED_BY(mutex_) = false;
};

} // namespace parallm
