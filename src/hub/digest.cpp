#include "hub/digest.h"

#include "base/error.h"

#include <openssl/evp.h>

#include <array>

namespace parallm {

namespace {

constexpr size_t sha256_digits = 64, sha1_digits = 40;

EVP_MD_CTX* evp(void* context) {
  return static_cast<EVP_MD_CTX*>(context);
}

} // namespace

bool is_checkable(std::string_view etag) {
  return (etag.size() == sha256_digits || etag.size() == sha1_digits) &&
      etag.find_first_not_of("0123456789abcdef") == etag.npos;
}

void Digest::Free::operator()(void* context) const {
  EVP_MD_CTX_free(evp(context));
}

Digest::Digest(std::string etag, uint64_t size) : etag_(std::move(etag)) {
  if (!is_checkable(etag_)) {
    return;
  }
  const bool lfs = etag_.size() == sha256_digits;
  context_.reset(EVP_MD_CTX_new());
  check(
      context_ && EVP_DigestInit_ex(evp(context_.get()), lfs ? EVP_sha256() : EVP_sha1(), nullptr) == 1,
      "OpenSSL has SHA-256 and SHA-1");
  if (!lfs) {
    add("blob " + std::to_string(size) + '\0');
  }
}

Digest::~Digest() = default;
Digest::Digest(Digest&&) noexcept = default;
Digest& Digest::operator=(Digest&&) noexcept = default;

void Digest::add(std::string_view bytes) {
  if (context_) {
    check(EVP_DigestUpdate(evp(context_.get()), bytes.data(), bytes.size()) == 1, "OpenSSL hashes");
  }
}

bool Digest::matches() {
  if (!context_) {
    return true;
  }
  std::array<unsigned char, EVP_MAX_MD_SIZE> bytes{};
  unsigned int size = 0;
  check(EVP_DigestFinal_ex(evp(context_.get()), bytes.data(), &size) == 1, "OpenSSL ends a hash");
  for (unsigned int i = 0; i < size; ++i) {
    found_ += fmt::format("{:02x}", bytes[i]);
  }
  return found_ == etag_;
}

const std::string& Digest::found() const {
  return found_;
}

} // namespace parallm
