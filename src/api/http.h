// What a route sees of HTTP: a request, an answer, and an answer that is still
// being made. No Beast here, so that only server.cpp compiles its templates.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace parallm {

using Headers = std::vector<std::pair<std::string, std::string>>;

struct HttpRequest {
  std::string method; // "GET"
  std::string path; // percent-decoded, without the query
  std::map<std::string, std::string> query; // percent-decoded; of several with one name the last
  std::string rest; // what a route that ends in * matched there
  std::string body;
  std::string id; // x-request-id: the caller's, or made
};

struct Answer {
  int status = 200;
  std::string type = "application/json";
  std::string body = {};
  Headers headers = {};
};

/** An answer that the engine's events make. Used by one connection, one thread
 * at a time; its destructor gives back everything it holds (rows leave the
 * batch). */
class Live {
 public:
  virtual ~Live() = default;

  struct Progress {
    std::string bytes; // streaming: what to send now; else the whole body, once done
    bool done = false;
  };

  /** `wake` is called, on any thread, when advance() has something to do. It
   * doesn't block or throw. */
  virtual void on_ready(std::function<void()> wake) = 0;
  /** Takes what has come, without blocking. Errors go to the client: as the
   * answer, or inside the stream. */
  virtual Progress advance() = 0;

  bool streaming = false; // server-sent events; else one JSON body
  Headers headers;
};

struct Later;
using Reply = std::variant<Answer, std::unique_ptr<Live>, std::unique_ptr<Later>>;

/** A reply that first has to wait for something outside the process (a database), or for long work: made on threads
 * that only such replies hold up. `over` becomes true when nobody waits for it any more. */
struct Later {
  std::function<Reply(const std::atomic<bool>& over)> work;
};

} // namespace parallm
