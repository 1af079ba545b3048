#include "text/tokenizer.h"

#include "base/json.h"
#include "base/log.h"
#include "text/ffi.h"

#include <algorithm>

namespace parallm {

namespace {

json::value token_or_null(const std::string& token) {
  return token.empty() ? json::value() : json::value(token);
}

std::string to_json(const Additions& additions) {
  json::array tokens;
  for (const AddedToken& token : additions.tokens) {
    tokens.push_back(json::object{
        {"content", token.content},
        {"special", token.special},
        {"single_word", token.single_word},
        {"lstrip", token.lstrip},
        {"rstrip", token.rstrip},
        {"normalized", token.normalized}});
  }
  json::object out{{"added_tokens", std::move(tokens)}, {"special_tokens", json::value_from(additions.special)}};
  if (additions.ends) {
    out["ends"] = {{"begin", token_or_null(additions.ends->begin)}, {"end", token_or_null(additions.ends->end)}};
  }
  return json::serialize(out);
}

/** `with` is `bare` with something before and after it: what is before. */
std::vector<int32_t> before(const std::vector<int32_t>& with, const std::vector<int32_t>& bare) {
  auto middle = std::search(with.begin(), with.end(), bare.begin(), bare.end());
  return bare.empty() || middle == with.end() ? std::vector<int32_t>() : std::vector<int32_t>(with.begin(), middle);
}

} // namespace

Tokenizer::Tokenizer(std::string_view tokenizer_json, const Additions& additions)
    : handle_(std::make_unique<Handle>()) {
  text_bytes error;
  text_tokenizer* opened = nullptr;
  const std::string more = to_json(additions);
  int status =
      text_tokenizer_open(tokenizer_json.data(), tokenizer_json.size(), more.data(), more.size(), &opened, &error);
  expect(status, error, "tokenizer");
  handle_->ffi.reset(opened);
  text_pieces pieces;
  expect(text_tokenizer_pieces(opened, &pieces, &error), error, "tokenizer");
  uint32_t begin = 0;
  for (size_t id = 0; id < pieces.ends.size; ++id) {
    uint32_t end = pieces.ends.data[id];
    handle_->pieces.emplace_back(pieces.bytes.data + begin, end - begin);
    begin = end;
  }
  handle_->flags.assign(pieces.flags.data, pieces.flags.size);
  handle_->joining = {pieces.joining == TEXT_PIECES_OPAQUE, static_cast<int>(pieces.strip), pieces.bare_first != 0};
  text_pieces_free(pieces);
  for (const AddedToken& token : additions.tokens) {
    if (token.id >= 0 && id(token.content) != token.id) {
      spdlog::warn(
          "the token \"{}\" should have the id {}, but the tokenizer's is {}",
          token.content,
          token.id,
          id(token.content));
    }
  }
  handle_->begin = before(ids("a", true), ids("a", false));
}

Tokenizer::~Tokenizer() = default;
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool special) const {
  std::vector<int32_t> out = ids(text, special);
  const auto& begin = handle_->begin;
  const auto size = static_cast<ptrdiff_t>(begin.size());
  if (special && size > 0 && out.size() >= 2 * begin.size() &&
      std::equal(begin.begin(), begin.end(), out.begin() + size)) {
    out.erase(out.begin(), out.begin() + size);
  }
  return out;
}

std::vector<int32_t> Tokenizer::ids(std::string_view text, bool special) const {
  text_bytes error;
  text_ids ids;
  int status = text_tokenizer_encode(handle_->ffi.get(), text.data(), text.size(), special, &ids, &error);
  expect(status, error, "tokenizer");
  std::vector<int32_t> out(ids.data, ids.data + ids.size);
  text_ids_free(ids);
  return out;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, std::vector<TextSpan>& spans) const {
  text_bytes error;
  text_ids ids, places;
  int status = text_tokenizer_encode_spans(handle_->ffi.get(), text.data(), text.size(), 0, &ids, &places, &error);
  expect(status, error, "tokenizer");
  std::vector<int32_t> out(ids.data, ids.data + ids.size);
  spans.clear();
  for (size_t i = 0; i < out.size(); ++i) {
    spans.push_back({places.data[2 * i], places.data[2 * i + 1]});
  }
  text_ids_free(ids);
  text_ids_free(places);
  return out;
}

/** Joins the pieces itself where it can: the library's byte fallback gives up a
 * whole run of bytes for one wrong one, which no stream can foresee, and writes
 * added tokens through the byte map. */
std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  if (!handle_->joining.opaque) {
    Decoder decoder(*this, skip_special);
    std::string out;
    for (int32_t id : ids) {
      out += decoder.push(id);
    }
    return out + decoder.flush();
  }
  std::vector<uint32_t> known;
  for (int32_t id : ids) {
    if (id >= 0) {
      known.push_back(static_cast<uint32_t>(id));
    }
  }
  text_bytes error, text;
  int status = text_tokenizer_decode(handle_->ffi.get(), known.data(), known.size(), skip_special, &text, &error);
  expect(status, error, "tokenizer");
  return take(text);
}

const std::string& Tokenizer::bytes(int32_t id) const {
  static const std::string none;
  return id >= 0 && id < size() ? handle_->pieces[id] : none;
}

int32_t Tokenizer::id(std::string_view token) const {
  return static_cast<int32_t>(text_tokenizer_id(handle_->ffi.get(), token.data(), token.size()));
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < size() && (handle_->flags[id] & TEXT_TOKEN_SPECIAL);
}

int Tokenizer::size() const {
  return static_cast<int>(handle_->pieces.size());
}

const Tokenizer::Handle& Tokenizer::handle() const {
  return *handle_;
}

} // namespace parallm
