// Bytes to whole UTF-8 characters, as they come. What is not UTF-8 becomes
// U+FFFD, one for each longest beginning of a character (Unicode 15,
// section 3.9, "maximal subparts"; what Python's errors="replace" does).
#pragma once

#include <string>
#include <string_view>

namespace parallm {

class Utf8 {
 public:
  /** Adds to `out` the characters that `bytes` complete; the beginning of one
   * more is kept. */
  void push(std::string_view bytes, std::string& out);
  /** The end: an unfinished character becomes U+FFFD. */
  void flush(std::string& out);

 private:
  std::string kept_; // at most 3 bytes
};

/** How many characters (code points) begin in UTF-8, as Python counts them. */
size_t characters(std::string_view text);

/** All of `bytes` at once. */
std::string valid_utf8(std::string_view bytes);

} // namespace parallm
