#include "base/random_hex.h"

#include <random>

namespace parallm {

std::string random_hex(int digits) {
  thread_local std::random_device random;
  std::string out;
  for (unsigned bits = 0; static_cast<int>(out.size()) < digits; bits >>= 4) {
    bits = out.size() % 8 == 0 ? random() : bits;
    out += "0123456789abcdef"[bits & 15];
  }
  return out;
}

} // namespace parallm
