// Where a store is: scheme:path?name=value&... or scheme://user:password@host:port/path?name=value&... . %XX is decoded
// in every part. Our own parameters are taken out by `take`; what nobody takes is an error.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

namespace parallm {

struct Address {
  std::string scheme; // "files" for a plain path
  std::string user, password;
  std::string host; // empty: none is named
  uint16_t port = 0; // 0: none is named
  std::string path; // of scheme://host/path without its first slash
  std::map<std::string, std::string> parameters;

  /** The parameter, which is then taken; `otherwise` where it is not given. */
  std::string take(const std::string& name, const std::string& otherwise = "");
  /** The same of a whole number. Errors: invalid. */
  uint64_t take_number(const std::string& name, uint64_t otherwise, uint64_t least, uint64_t most);
  /** `exact` and `timeout_ms` of docs/memory.md, with their bounds. */
  size_t take_exact();
  int take_timeout(int otherwise = 30'000);
  /** For messages: without the password and the parameters. */
  std::string shown() const;
};

/** Errors: invalid. */
Address parse_address(const std::string& url);

} // namespace parallm
