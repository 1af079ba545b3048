// Constrained output: which tokens may come next under a JSON schema, a regular
// expression or a Lark grammar (llguidance behind rust/text_ffi). A Grammars
// belongs to a tokenizer and is immutable; a Grammar is one row's state.
#pragma once

#include "text/tokenizer.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

namespace parallm {

enum class GrammarKind { json_schema, json_object, regex, lark };

class Grammar {
 public:
  struct Handle;
  explicit Grammar(std::unique_ptr<Handle> handle);
  ~Grammar();
  Grammar(Grammar&&) noexcept;

  /** Bit t of word t/32 is set where token t may come next; end tokens only
   * where the text may end. */
  void allowed(std::span<uint32_t> words);
  /** Errors: internal, where the token was not allowed. */
  void accept(int32_t token);

 private:
  std::unique_ptr<Handle> handle_;
};

class Grammars {
 public:
  /** `vocabulary`: the logits' width, at least the tokenizer's size. */
  Grammars(const Tokenizer& tokenizer, int vocabulary, std::span<const int32_t> end_ids);
  ~Grammars();

  /** Errors: invalid, with the compiler's own words. */
  Grammar compile(GrammarKind kind, std::string_view source) const;

 private:
  struct Handle;
  std::unique_ptr<Handle> handle_;
};

} // namespace parallm
