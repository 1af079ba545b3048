#include "base/hash.h"

#include "base/error.h"

#include <openssl/evp.h>

#include <array>

namespace parallm {

namespace {

EVP_MD_CTX* evp(void* context) {
  return static_cast<EVP_MD_CTX*>(context);
}

} // namespace

void Hash::Free::operator()(void* context) const {
  EVP_MD_CTX_free(evp(context));
}

Hash::Hash(Kind kind) : context_(EVP_MD_CTX_new()) {
  const EVP_MD* how = kind == Kind::sha256 ? EVP_sha256() : EVP_sha1();
  check(context_ && EVP_DigestInit_ex(evp(context_.get()), how, nullptr) == 1, "OpenSSL has SHA-256 and SHA-1");
}

void Hash::add(std::string_view bytes) {
  check(EVP_DigestUpdate(evp(context_.get()), bytes.data(), bytes.size()) == 1, "OpenSSL hashes");
}

std::string Hash::hex() {
  std::array<unsigned char, EVP_MAX_MD_SIZE> bytes{};
  unsigned int size = 0;
  check(EVP_DigestFinal_ex(evp(context_.get()), bytes.data(), &size) == 1, "OpenSSL ends a hash");
  std::string text;
  for (unsigned int i = 0; i < size; ++i) {
    text += fmt::format("{:02x}", bytes[i]);
  }
  return text;
}

std::string sha256(std::string_view text) {
  Hash hash;
  hash.add(text);
  return hash.hex();
}

} // namespace parallm
