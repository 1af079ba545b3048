// What a server's connections share, and a connection's life: one coroutine on
// its own strand. All of Beast is behind this header, in connection.cpp; it is
// included by server.cpp alone.
#pragma once

#include "api/server.h"
#include "base/error.h"

#include <boost/asio.hpp>
#include <boost/asio/experimental/as_tuple.hpp>

#include <atomic>
#include <functional>
#include <optional>

namespace parallm {

namespace net = boost::asio;

// Errors of a connection are values: a client that leaves is nothing unusual.
constexpr auto as_value = net::experimental::as_tuple(net::use_awaitable);

struct Shared {
  ServerOptions options;
  Service& service;
  std::atomic<bool> stopping = false;
  std::atomic<int> active = 0; // requests whose answer is not yet written
  std::atomic<int> connections = 0;
  net::thread_pool* work = nullptr;
  net::thread_pool* waiting = nullptr;
};

/** Counts itself while it lives. */
struct Counted {
  explicit Counted(std::atomic<int>& count) : count(count) {
    ++count;
  }
  ~Counted() {
    --count;
  }
  Counted(const Counted&) = delete;
  std::atomic<int>& count;
};

/** Runs a request's work. Whatever goes wrong in it is this request's error,
 * and is caught here. */
std::optional<Error> caught(const std::function<void()>& work);

/** Answers the connection's requests, one after the other, until it ends. */
net::awaitable<void> serve_connection(net::ip::tcp::socket socket, Shared& shared);

} // namespace parallm
