#include "text/tiktoken.h"

#include "base/error.h"
#include "text/pre_tokenizers.h"
#include "text/tokenizer_json.h"

#include <boost/unordered/unordered_flat_map.hpp>

#include <algorithm>
#include <array>
#include <charconv>

namespace parallm {

namespace {

/** The repository's own class, which is code that is never run; how it parts texts, and how many ids behind the ranks
 * it keeps for special tokens (tokenization_kimi.py, tokenization_moonshot.py). */
constexpr const char* known_class = "TikTokenTokenizer";
constexpr const char* known_pre = "kimi-k2";
constexpr size_t reserved = 256;

[[noreturn]] void broken(std::string_view line) {
  fail(Kind::invalid, "[tokenizer] tiktoken.model: a line is base64, a space and the line's number; got \"{}\"", line);
}

std::string from_base64(std::string_view text, std::string_view line) {
  std::string out;
  uint32_t word = 0;
  int bits = 0;
  while (text.ends_with('=')) {
    text.remove_suffix(1);
  }
  for (char c : text) {
    constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t value = alphabet.find(c);
    if (value == std::string_view::npos) {
      broken(line);
    }
    word = word << 6 | static_cast<uint32_t>(value);
    if ((bits += 6) >= 8) {
      bits -= 8;
      out += static_cast<char>(word >> bits & 0xFF);
    }
  }
  return out;
}

/** By rank. */
std::vector<std::string> tokens_of(std::string_view text) {
  std::vector<std::string> out;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.empty()) {
      continue;
    }
    const size_t space = std::min(line.find(' '), line.size() - 1);
    size_t rank = 0;
    const auto [last, error] = std::from_chars(line.data() + space + 1, line.data() + line.size(), rank);
    if (error != std::errc() || rank != out.size() || space == 0) {
      broken(line);
    }
    out.push_back(from_base64(line.substr(0, space), line));
  }
  return out;
}

/** GPT-2's map: printable Latin-1 bytes stand for themselves, the others are moved up from U+0100. */
std::array<std::string, 256> characters() {
  std::array<std::string, 256> out;
  uint32_t moved = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const uint32_t code = printable ? byte : moved++;
    if (code < 0x80) {
      out[byte] = static_cast<char>(code);
    } else {
      out[byte] = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
    }
  }
  return out;
}

std::string written(std::string_view bytes) {
  static const auto map = characters();
  std::string out;
  for (unsigned char byte : bytes) {
    out += map[byte];
  }
  return out;
}

using Merges = std::vector<std::pair<std::string_view, std::string_view>>;

/** tiktoken has no list of merges: it joins whatever makes the token of the lowest rank. `parts` owns the texts. */
Merges merges_of(const std::vector<std::string>& tokens, std::vector<std::string>& parts) {
  boost::unordered_flat_map<std::string_view, size_t> ranks;
  ranks.reserve(tokens.size());
  for (size_t rank = 0; rank < tokens.size(); ++rank) {
    ranks.emplace(tokens[rank], rank);
  }
  std::vector<std::pair<size_t, size_t>> pairs; // of ranks
  for (std::string_view token : tokens) {
    const auto first = static_cast<ptrdiff_t>(pairs.size());
    for (size_t left = 1; left < token.size(); ++left) {
      const auto a = ranks.find(token.substr(0, left)), b = ranks.find(token.substr(left));
      if (a != ranks.end() && b != ranks.end()) {
        pairs.emplace_back(a->second, b->second);
      }
    }
    std::sort(pairs.begin() + first, pairs.end());
  }
  parts.reserve(tokens.size());
  for (const auto& token : tokens) {
    parts.push_back(written(token));
  }
  Merges out;
  out.reserve(pairs.size());
  for (auto [a, b] : pairs) {
    out.emplace_back(parts[a], parts[b]);
  }
  return out;
}

} // namespace

TokenizerSource tiktoken_tokenizer(const TiktokenFiles& files) {
  if (files.tokenizer_class != known_class) {
    fail(
        Kind::invalid,
        "[tokenizer] tiktoken.model needs tokenizer_config.json's tokenizer_class to be {}; got \"{}\"",
        known_class,
        files.tokenizer_class);
  }
  const PreTokenizer& pre = find_pre_tokenizer(known_pre);
  const std::vector<std::string> bytes = tokens_of(files.ranks);
  std::vector<std::string> tokens;
  const Merges merges = merges_of(bytes, tokens);
  TokenizerSource out;
  std::vector<std::string> all = tokens;
  for (size_t i = 0; i < reserved; ++i) {
    const auto id = static_cast<int32_t>(bytes.size() + i);
    const auto named = files.added.find(id);
    auto token = named != files.added.end()
        ? named->second
        : AddedToken{.id = id, .content = fmt::format("<|reserved_token_{}|>", id), .special = true};
    all.push_back(token.content);
    out.additions.tokens.push_back(std::move(token));
  }
  check_unique(all, "tokenizer");
  out.json = tokenizer_json(
      "",
      pre_tokenizer_json(pre),
      R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})",
      bpe_json({.tokens = all, .merges = merges, .ignore_merges = true}));
  return out;
}

} // namespace parallm
