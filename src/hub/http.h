// HTTP by libcurl: GET and HEAD with redirects, proxies (http_proxy, https_proxy, all_proxy, no_proxy) and the token,
// which goes to the endpoint's scheme, host and port and nowhere else. One connection a thread; it throws nothing: a
// Reply says what came.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace parallm {

struct Reply {
  long status = 0; // 0: no answer
  std::map<std::string, std::string> headers; // names in lower case
  std::string body; // where it went to no sink; of errors its beginning
  std::string failure; // where the answer did not come, or not to its end: the reason
  bool stopped = false; // by the flag or the sink
  bool hopeless = false; // asking again can't help: certificates, a redirect that is not followed

  bool ok() const {
    return failure.empty() && !stopped && status >= 200 && status < 300;
  }
  /** Whether the same question may get a better answer later. */
  bool passing() const {
    return !stopped && !hopeless && (!failure.empty() || status == 408 || status == 429 || status >= 500);
  }
  const std::string& header(const std::string& name) const;
  /** What Retry-After or the hub's RateLimit ask for. */
  std::optional<double> retry_after() const;
};

struct Question {
  std::string url;
  uint64_t from = 0; // the first byte that is wanted
  bool head = false; // redirects to other hosts are then not followed: what the hub says of a file is in its own answer
};

/** Takes the body of a 2xx answer by pieces, whose status and headers are there already. False ends it. Throws nothing.
 */
using Sink = std::function<bool(const Reply& head, std::string_view piece)>;

class Http {
 public:
  /** `stop` is looked at about every second, and at each piece. */
  Http(std::string endpoint, std::string token, const std::atomic<bool>& stop);
  ~Http();

  Reply ask(const Question& question, const Sink& sink = {});

 private:
  struct Connection;
  std::unique_ptr<Connection> connection_;
  std::string endpoint_;
  std::string token_;
};

/** For one part of a path, or with `keep` = "/" for a whole one: all but letters, digits, "-_.~" as %XX. */
std::string quoted(std::string_view text, std::string_view keep = "");

} // namespace parallm
