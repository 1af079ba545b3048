// Connections that calls borrow: each has one for its own, and one that is still good goes back. Thread-safe.
#pragma once

#include "base/thread_annotations.h"

#include <functional>
#include <memory>
#include <vector>

namespace parallm {

/** `Connection::good()` says whether another call may use it: nothing half done, and the server has not gone away. So
 * that a server may restart between two calls unseen; one that goes away in a call is that call's error. */
template <typename Connection>
class Pool {
 public:
  explicit Pool(std::function<std::unique_ptr<Connection>()> connect) : connect_(std::move(connect)) {}

  class Loan {
   public:
    Loan(Pool& pool, std::unique_ptr<Connection> connection) : pool_(pool), connection_(std::move(connection)) {}
    ~Loan() {
      if (connection_->good()) {
        pool_.take_back(std::move(connection_));
      }
    }
    Loan(const Loan&) = delete;
    Loan& operator=(const Loan&) = delete;

    Connection& operator*() const {
      return *connection_;
    }
    Connection* operator->() const {
      return connection_.get();
    }

   private:
    Pool& pool_;
    std::unique_ptr<Connection> connection_;
  };

  /** Throws what connect throws. */
  Loan borrow() EXCLUDES(mutex_) {
    while (auto connection = take()) {
      if (connection->good()) {
        return Loan(*this, std::move(connection));
      }
    }
    return Loan(*this, connect_());
  }

 private:
  static constexpr size_t most_idle = 8;

  std::unique_ptr<Connection> take() EXCLUDES(mutex_) {
    Lock lock(mutex_);
    if (idle_.empty()) {
      return nullptr;
    }
    auto connection = std::move(idle_.back());
    idle_.pop_back();
    return connection;
  }

  void take_back(std::unique_ptr<Connection> connection) EXCLUDES(mutex_) {
    Lock lock(mutex_);
    if (idle_.size() < most_idle) {
      idle_.push_back(std::move(connection));
    }
  }

  const std::function<std::unique_ptr<Connection>()> connect_;
  Mutex mutex_;
  std::vector<std::unique_ptr<Connection>> idle_ GUARDED_BY(mutex_);
};

} // namespace parallm
