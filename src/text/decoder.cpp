#include "text/decoder.h"

#include "text/ffi.h"

#include <algorithm>

namespace parallm {

Decoder::Decoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special), strip_(tokenizer.handle().joining.strip) {}

std::string Decoder::push(int32_t id) {
  if (id < 0 || id >= tokenizer_->size() || !(tokenizer_->handle().flags[id] & TEXT_TOKEN_KNOWN) ||
      (skip_special_ && tokenizer_->is_special(id))) {
    return {};
  }
  if (tokenizer_->handle().joining.opaque) {
    return push_opaque(id);
  }
  std::string piece = tokenizer_->bytes(id);
  if (first_ && tokenizer_->handle().joining.bare_first) {
    std::erase(piece, ' ');
  }
  first_ = false;
  size_t spaces = 0;
  while (spaces < piece.size() && strip_ > 0 && piece[spaces] == ' ') {
    ++spaces;
    --strip_;
  }
  if (spaces < piece.size()) {
    strip_ = 0;
  }
  std::string out;
  utf8_.push(std::string_view(piece).substr(spaces), out);
  return out;
}

/** Decodes all ids again: such tokenizers (WordPiece) are not those of text
 * generators. A U+FFFD at the end may still become a character, so it waits. */
std::string Decoder::push_opaque(int32_t id) {
  constexpr std::string_view unsure = "\xEF\xBF\xBD";
  window_.push_back(id);
  std::string text = tokenizer_->decode(window_, skip_special_);
  size_t sure = text.size();
  while (sure >= unsure.size() && text.compare(sure - unsure.size(), unsure.size(), unsure) == 0) {
    sure -= unsure.size();
  }
  if (sure <= given_) {
    return {};
  }
  std::string out = text.substr(given_, sure - given_);
  given_ = sure;
  return out;
}

std::string Decoder::flush() {
  std::string out;
  utf8_.flush(out);
  if (!window_.empty()) {
    std::string text = tokenizer_->decode(window_, skip_special_);
    out += text.substr(std::min(given_, text.size()));
    window_.clear();
    given_ = 0;
  }
  return out;
}

} // namespace parallm
