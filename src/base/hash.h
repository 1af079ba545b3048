// SHA-256 and SHA-1, by OpenSSL's EVP. One thread an object.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace parallm {

class Hash {
 public:
  enum class Kind { sha256, sha1 };
  explicit Hash(Kind kind = Kind::sha256);

  void add(std::string_view bytes);
  /** Hex digits, 64 or 40; adds no more. */
  std::string hex();

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Free> context_; // EVP_MD_CTX
};

/** Of one text. */
std::string sha256(std::string_view text);

} // namespace parallm
