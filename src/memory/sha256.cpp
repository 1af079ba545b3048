#include "memory/sha256.h"

#include "base/error.h"

#include <openssl/evp.h>

#include <array>

namespace parallm {

namespace {

EVP_MD_CTX* evp(const std::shared_ptr<void>& context) {
  return static_cast<EVP_MD_CTX*>(context.get());
}

} // namespace

Sha256::Sha256() : context_(EVP_MD_CTX_new(), [](void* of) { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(of)); }) {
  check(context_ && EVP_DigestInit_ex(evp(context_), EVP_sha256(), nullptr) == 1, "OpenSSL has SHA-256");
}

void Sha256::add(std::string_view bytes) {
  check(EVP_DigestUpdate(evp(context_), bytes.data(), bytes.size()) == 1, "OpenSSL hashes");
}

std::string Sha256::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> bytes{};
  unsigned int size = 0;
  check(EVP_DigestFinal_ex(evp(context_), bytes.data(), &size) == 1, "OpenSSL ends a hash");
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += fmt::format("{:02x}", bytes[i]);
  }
  return text;
}

std::string sha256(std::string_view text) {
  Sha256 hash;
  hash.add(text);
  return hash.hex();
}

} // namespace parallm
