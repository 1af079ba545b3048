// Log probabilities as OpenAI's two APIs write them.
#include "api/choices.h"
#include "text/utf8.h"

#include <algorithm>
#include <cmath>

namespace parallm {

namespace {

// JSON has no -inf; OpenAI's API writes this.
double json_logprob(float logprob) {
  return std::isfinite(logprob) ? shortest(std::max(logprob, -9999.0f)) : -9999.0;
}

// The legacy API's token string: pieces of a character are written as their
// bytes, so that different tokens differ.
std::string token_text(const std::string& bytes) {
  std::string text = valid_utf8(bytes);
  if (text == bytes) {
    return text;
  }
  text = "bytes:";
  for (unsigned char byte : bytes) {
    text += fmt::format("\\x{:02x}", byte);
  }
  return text;
}

json::object chat_token(const TokenLogprob& token, const Tokenizer& tokenizer) {
  const std::string& text = tokenizer.bytes(token.id);
  json::array bytes;
  bytes.reserve(text.size());
  for (unsigned char byte : text) {
    bytes.push_back(byte);
  }
  return {{"token", valid_utf8(text)}, {"logprob", json_logprob(token.logprob)}, {"bytes", std::move(bytes)}};
}

} // namespace

json::value chat_logprobs(const std::vector<Scored>& tokens, const Tokenizer& tokenizer) {
  json::array content;
  content.reserve(tokens.size());
  for (const Scored& scored : tokens) {
    json::object entry = chat_token(scored.token, tokenizer);
    json::array top;
    for (const TokenLogprob& other : scored.top) {
      top.push_back(chat_token(other, tokenizer));
    }
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

CompletionLogprobs::CompletionLogprobs(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

void CompletionLogprobs::place(int32_t id) {
  const std::string& bytes = tokenizer_->bytes(id);
  tokens_.push_back(json::string(token_text(bytes)));
  offsets_.push_back(offset_);
  if (skip_special_ && tokenizer_->is_special(id)) {
    return; // it takes no room in the text
  }
  offset_ += static_cast<int64_t>(characters(bytes));
}

void CompletionLogprobs::add_first(int32_t id) {
  place(id);
  logprobs_.push_back(nullptr);
  top_.push_back(nullptr);
}

void CompletionLogprobs::add(const Scored& scored) {
  place(scored.token.id);
  logprobs_.push_back(json_logprob(scored.token.logprob));
  json::object top;
  // Tokens of equal text share a key: the most likely one keeps it.
  auto put = [&](const TokenLogprob& token) {
    top.emplace(token_text(tokenizer_->bytes(token.id)), json_logprob(token.logprob));
  };
  for (const TokenLogprob& other : scored.top) {
    put(other);
  }
  put(scored.token);
  top_.push_back(std::move(top));
}

json::object CompletionLogprobs::take() {
  json::object out{
      {"tokens", std::move(tokens_)},
      {"token_logprobs", std::move(logprobs_)},
      {"top_logprobs", std::move(top_)},
      {"text_offset", std::move(offsets_)}};
  tokens_ = {};
  logprobs_ = {};
  top_ = {};
  offsets_ = {};
  return out;
}

json::array prompt_logprobs(const std::vector<Scored>& prompt, const Tokenizer& tokenizer) {
  json::array out;
  out.push_back(nullptr);
  for (const Scored& scored : prompt) {
    json::object position;
    auto put = [&](const TokenLogprob& token) {
      position.emplace(
          std::to_string(token.id),
          json::object{
              {"logprob", json_logprob(token.logprob)}, {"decoded_token", valid_utf8(tokenizer.bytes(token.id))}});
    };
    put(scored.token);
    for (const TokenLogprob& other : scored.top) {
      put(other);
    }
    out.push_back(std::move(position));
  }
  return out;
}

json::array ids_json(const std::vector<Scored>& tokens) {
  json::array ids;
  for (const Scored& token : tokens) {
    ids.push_back(token.token.id);
  }
  return ids;
}

json::array ids_json(const std::vector<int32_t>& ids) {
  return json::array(ids.begin(), ids.end());
}

} // namespace parallm

namespace parallm {

void keep_top(std::vector<Scored>& tokens, int count) {
  for (Scored& scored : tokens) {
    if (scored.top.size() > static_cast<size_t>(count)) {
      scored.top.resize(count);
    }
  }
}

} // namespace parallm
