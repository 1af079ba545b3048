// The hash that a blob's name on the hub is : SHA-256 of the content for LFS files, for others git's
// SHA-1 of "blob <size>\0" and the content. One thread.
#pragma once

#include "base/hash.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace parallm {

/** Whether `etag` is of a form that the content can be checked against: 64 or 40 hex digits. */
bool is_checkable(std::string_view etag);

class Digest {
 public:
  /** Of a content of `size` bytes that must have `etag`. Where etag is no hash, matches() is always true. */
  Digest(std::string etag, uint64_t size);

  void add(std::string_view bytes);
  /** The end; adds no more. */
  bool matches();
  /** What matches() compared with etag: hex digits. */
  const std::string& found() const;

 private:
  std::string etag_;
  std::string found_;
  std::optional<Hash> hash_; // nothing: nothing to check
};

} // namespace parallm
