// Ids to text as they come, for one choice: holds back bytes that are not yet a
// whole UTF-8 character, and text that may be the beginning of a stop string.
// What was given out is never taken back. One thread at a time.
#pragma once

#include "text/tokenizer.h"

#include <memory>
#include <string>
#include <vector>

namespace parallm {

class TextStream {
 public:
  /** `stops`: the stream ends before the first place where one of them stands
   * (`keep_stop`: right after it). The text of the first `min_tokens` tokens is
   * given as it is: no stop string is looked for in it. */
  TextStream(
      const Tokenizer& tokenizer,
      std::vector<std::string> stops,
      bool skip_special = true,
      bool keep_stop = false,
      int min_tokens = 0);
  ~TextStream();
  TextStream(TextStream&&) noexcept;

  /** Text that is now certain; may be empty. */
  std::string push(int32_t id);
  /** A stop string was found: push gives nothing more. */
  bool stopped() const;
  /** The stop string that was found. */
  const std::string& stop() const;
  /** The end: what was held back; an unfinished character becomes U+FFFD. */
  std::string flush();

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

} // namespace parallm
