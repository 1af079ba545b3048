// HTTP/1.1 over Boost.Beast: connections, limits, time-outs, streams, and the
// end of the process. Each connection is a coroutine on its own strand; the
// routes' heavy work runs on threads of its own, so that no connection waits
// for another's tokenizing. The one place where a request's errors are caught.
#pragma once

#include "api/service.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace parallm {

struct ServerOptions {
  std::string host = "127.0.0.1";
  int port = 8000; // 0: any free one
  int io_threads = 2;
  int work_threads = 2;
  int waiting_threads = 16; // requests that wait for a memory store
  size_t body_limit = size_t{32} << 20; // bytes; over it: 413
  uint32_t header_limit = 32 << 10;
  std::chrono::milliseconds request_timeout{86'400'000}; // arrival to end: 504
  std::chrono::milliseconds read_timeout{60'000}; // a request's bytes
  std::chrono::milliseconds write_timeout{30'000}; // a client that does not read is dropped
  std::chrono::milliseconds idle_timeout{300'000}; // between requests
  std::chrono::milliseconds drain_limit{30'000}; // for running requests at the end
  std::vector<std::string> allowed_origins{"*"};
  std::string api_key; // empty: none needed
};

class Server {
 public:
  /** Binds and listens. Errors: invalid, where the address can't be had. */
  Server(ServerOptions options, Service& service);
  ~Server();

  int port() const;

  /** Serves until SIGTERM, SIGINT or stop(); then takes no new work, lets
   * running requests end (within drain_limit) and returns. A second signal ends
   * it at once. Call once. */
  void run();
  /** As SIGTERM. Any thread. */
  void stop();
  /** Connections that are open now. */
  int connections() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

} // namespace parallm
