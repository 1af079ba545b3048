// SHA-256 by OpenSSL. One thread an object.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace parallm {

class Sha256 {
 public:
  Sha256();

  void add(std::string_view bytes);
  /** 64 hex digits; adds no more. */
  std::string hex();

 private:
  std::shared_ptr<void> context_; // EVP_MD_CTX
};

/** Of one text. */
std::string sha256(std::string_view text);

} // namespace parallm
