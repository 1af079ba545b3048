#include "text/grammar.h"

#include "text/ffi.h"

namespace parallm {

struct Grammar::Handle {
  Owned<text_grammar, text_grammar_close> ffi;
};

struct Grammars::Handle {
  Owned<text_grammars, text_grammars_close> ffi;
};

Grammar::Grammar(std::unique_ptr<Handle> handle) : handle_(std::move(handle)) {}
Grammar::~Grammar() = default;
Grammar::Grammar(Grammar&&) noexcept = default;

void Grammar::allowed(std::span<uint32_t> words) {
  text_bytes error;
  int status = text_grammar_allowed(handle_->ffi.get(), words.data(), words.size(), &error);
  // The grammar itself was compiled: what goes wrong from here on is ours.
  if (status != TEXT_OK) {
    fail(Kind::internal, "[grammar] {}", take(error));
  }
}

void Grammar::accept(int32_t token) {
  text_bytes error;
  int status = text_grammar_accept(handle_->ffi.get(), static_cast<uint32_t>(token), &error);
  if (status != TEXT_OK) {
    fail(Kind::internal, "[grammar] {}", take(error));
  }
}

Grammars::Grammars(const Tokenizer& tokenizer, int vocabulary, std::span<const int32_t> end_ids)
    : handle_(std::make_unique<Handle>()) {
  std::vector<uint32_t> ends(end_ids.begin(), end_ids.end());
  text_bytes error;
  text_grammars* opened = nullptr;
  int status = text_grammars_open(
      tokenizer.handle().ffi.get(), static_cast<size_t>(vocabulary), ends.data(), ends.size(), &opened, &error);
  expect(status, error, "grammar");
  handle_->ffi.reset(opened);
}

Grammars::~Grammars() = default;

Grammar Grammars::compile(GrammarKind kind, std::string_view source) const {
  static_assert(
      static_cast<int>(GrammarKind::json_schema) == TEXT_GRAMMAR_JSON_SCHEMA &&
      static_cast<int>(GrammarKind::json_object) == TEXT_GRAMMAR_JSON_OBJECT &&
      static_cast<int>(GrammarKind::regex) == TEXT_GRAMMAR_REGEX &&
      static_cast<int>(GrammarKind::lark) == TEXT_GRAMMAR_LARK);
  text_bytes error;
  text_grammar* compiled = nullptr;
  int status = text_grammar_compile(
      handle_->ffi.get(), static_cast<uint32_t>(kind), source.data(), source.size(), &compiled, &error);
  expect(status, error, "grammar");
  auto handle = std::make_unique<Grammar::Handle>();
  handle->ffi.reset(compiled);
  return Grammar(std::move(handle));
}

} // namespace parallm
