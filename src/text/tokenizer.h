// Text to token ids and back: Hugging Face's own `tokenizers` library behind
// rust/text_ffi. Immutable after loading, so any thread may use it at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace parallm {

class Tokenizer {
 public:
  /** From the bytes of a tokenizer.json. Padding and truncation found in it are
   * turned off. Errors: invalid. */
  explicit Tokenizer(std::string_view tokenizer_json);
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /** `special`: add what the post-processor adds (BOS). Text must be valid
   * UTF-8: error invalid. */
  std::vector<int32_t> encode(std::string_view text, bool special) const;
  std::string decode(std::span<const int32_t> ids, bool skip_special) const;

  /** A token's own bytes, as it stands inside a text (byte-level and
   * byte-fallback pieces undone; may be a part of a UTF-8 character). Empty for
   * ids that the tokenizer lacks. */
  const std::string& bytes(int32_t id) const;
  /** The id of an exact vocabulary entry (added tokens too), -1 where there is
   * none. */
  int32_t id(std::string_view token) const;
  bool is_special(int32_t id) const;
  /** One more than the greatest id, added tokens included; the model's logits
   * may be wider. */
  int size() const;

  struct Handle;
  const Handle& handle() const;

 private:
  std::unique_ptr<Handle> handle_;
};

} // namespace parallm
