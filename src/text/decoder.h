// Ids to text, one after another, equal to decoding them all at once. One
// thread at a time.
#pragma once

#include "text/tokenizer.h"
#include "text/utf8.h"

#include <cstdint>
#include <string>
#include <vector>

namespace parallm {

/** How a tokenizer's pieces make a text. */
struct Joining {
  bool opaque = false; // only the library's own decode knows
  int strip = 0; // so many spaces at most are dropped from the beginning
  bool bare_first = false; // the first piece loses all its spaces
};

class Decoder {
 public:
  Decoder(const Tokenizer& tokenizer, bool skip_special);
  /** The whole characters that this id completes. Ids that the tokenizer lacks
   * give nothing. */
  std::string push(int32_t id);
  std::string flush();

 private:
  std::string push_opaque(int32_t id);

  const Tokenizer* tokenizer_;
  bool skip_special_;
  Utf8 utf8_;
  bool first_ = true;
  int strip_; // spaces that may still be dropped
  // Opaque tokenizers: all ids so far, of whose text `given_` bytes are out.
  std::vector<int32_t> window_;
  size_t given_ = 0;
};

} // namespace parallm
