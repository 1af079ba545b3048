#include "text/utf8.h"

#include <algorithm>

namespace parallm {

namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD";

/** What the bytes at the front are: a character, the beginning of one, or
 * neither. */
struct Front {
  enum { whole, unfinished, wrong } what;
  size_t size; // bytes of it
};

/** The second byte's bounds tell overlong forms, surrogates and what lies above
 * U+10FFFF. */
Front front(std::string_view bytes) {
  auto at = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  unsigned char lead = at(0);
  if (lead < 0x80) {
    return {Front::whole, 1};
  }
  if (lead < 0xC2 || lead > 0xF4) {
    return {Front::wrong, 1};
  }
  size_t size = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < size; ++i) {
    if (i == bytes.size()) {
      return {Front::unfinished, i};
    }
    if (at(i) < low || at(i) > high) {
      return {Front::wrong, i};
    }
    low = 0x80;
    high = 0xBF;
  }
  return {Front::whole, size};
}

} // namespace

void Utf8::push(std::string_view bytes, std::string& out) {
  kept_ += bytes;
  std::string_view rest = kept_;
  while (!rest.empty()) {
    Front next = front(rest);
    if (next.what == Front::unfinished) {
      break;
    }
    out += next.what == Front::whole ? rest.substr(0, next.size) : replacement;
    rest.remove_prefix(next.size);
  }
  kept_.erase(0, kept_.size() - rest.size());
}

void Utf8::flush(std::string& out) {
  if (!kept_.empty()) {
    out += replacement;
    kept_.clear();
  }
}

size_t characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

std::string valid_utf8(std::string_view bytes) {
  std::string out;
  Utf8 utf8;
  utf8.push(bytes, out);
  utf8.flush(out);
  return out;
}

} // namespace parallm
