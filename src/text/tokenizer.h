// Text to token ids and back: Hugging Face's own `tokenizers` library behind
// rust/text_ffi. Immutable after loading, so any thread may use it at once.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace parallm {

/** A token that is found in a text before anything else is looked for. */
struct AddedToken {
  int32_t id = -1; // the one it should have, where that is known: another one is logged
  std::string content;
  bool special = false; // skipped where a text is asked for without special tokens
  bool single_word = false;
  bool lstrip = false; // takes the white space on its left along
  bool rstrip = false;
  bool normalized = false; // looked for in the normalized text
};

/** What stands before and after every text; empty: nothing. */
struct Ends {
  std::string begin;
  std::string end;
};

/** What a model's other files add to its tokenizer.json. */
struct Additions {
  std::vector<AddedToken> tokens; // in the order of their ids; one that is there already takes these flags
  std::vector<std::string> special; // names for tokens of the vocabulary, which become special
  std::optional<Ends> ends; // instead of the post-processor
};

/** A tokenizer that is ready to be opened. */
struct TokenizerSource {
  std::string json; // a tokenizer.json
  Additions additions;
};

/** Where something stands in a text, in characters (code points). */
struct TextSpan {
  uint32_t begin = 0;
  uint32_t end = 0;
};

class Tokenizer {
 public:
  /** From the bytes of a tokenizer.json. Padding and truncation found in it are
   * turned off. Errors: invalid. */
  explicit Tokenizer(std::string_view tokenizer_json, const Additions& additions = {});
  explicit Tokenizer(const TokenizerSource& source) : Tokenizer(source.json, source.additions) {}
  ~Tokenizer();
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;

  /** `special`: add what the post-processor adds (BOS); where the text begins
   * with it already, it stands there once. Text must be valid UTF-8: error
   * invalid. */
  std::vector<int32_t> encode(std::string_view text, bool special) const;
  /** Without special tokens, and where each token stands in the text. */
  std::vector<int32_t> encode(std::string_view text, std::vector<TextSpan>& spans) const;
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
  std::vector<int32_t> ids(std::string_view text, bool special) const;

  std::unique_ptr<Handle> handle_;
};

} // namespace parallm
