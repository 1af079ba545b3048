#include "hub/digest.h"

namespace parallm {

namespace {

constexpr size_t sha256_digits = 64, sha1_digits = 40;

} // namespace

bool is_checkable(std::string_view etag) {
  return (etag.size() == sha256_digits || etag.size() == sha1_digits) &&
      etag.find_first_not_of("0123456789abcdef") == etag.npos;
}

Digest::Digest(std::string etag, uint64_t size) : etag_(std::move(etag)) {
  if (!is_checkable(etag_)) {
    return;
  }
  const bool lfs = etag_.size() == sha256_digits;
  hash_.emplace(lfs ? Hash::Kind::sha256 : Hash::Kind::sha1);
  if (!lfs) {
    add("blob " + std::to_string(size) + '\0');
  }
}

void Digest::add(std::string_view bytes) {
  if (hash_) {
    hash_->add(bytes);
  }
}

bool Digest::matches() {
  if (!hash_) {
    return true;
  }
  found_ = hash_->hex();
  return found_ == etag_;
}

const std::string& Digest::found() const {
  return found_;
}

} // namespace parallm
