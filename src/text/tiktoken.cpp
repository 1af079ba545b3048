#include "text/tiktoken.h"

#include "base/error.h"
#include "base/json.h"
#include "text/pre_tokenizers.h"
#include "text/tokenizer_json.h"

#include <boost/unordered/unordered_flat_map.hpp>

#include <algorithm>
#include <array>
#include <charconv>

namespace parallm {

namespace {

/** The repositories' own classes, which are code that is never run: how they part texts, and what their special tokens
 * behind the ranks are: some with names, others with numbers (tokenization_kimi.py and _moonshot.py, _qwen.py, _hy.py).
 */
struct Class {
  const char* name;
  const char* pre;
  std::vector<const char*> named;
  const char* numbered; // its number for {}
  bool by_id; // the number is the id, else it counts from 0
  size_t special; // both kinds
  const char* bos;
  const char* eos;
};

const std::vector<Class>& classes() {
  static const std::vector<Class> all = {
      {"TikTokenTokenizer", "kimi-k2", {}, "<|reserved_token_{}|>", true, 256, "", ""},
      {"QWenTokenizer",
       "qwen2",
       {"<|endoftext|>", "<|im_start|>", "<|im_end|>"},
       "<|extra_{}|>",
       false,
       208,
       "",
       "<|endoftext|>"},
      {"HYTokenizer",
       "qwen2",
       {"<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"},
       "<|extra_{}|>",
       false,
       210,
       "<|startoftext|>",
       "<|endoftext|>"}};
  return all;
}

const Class& class_of(const std::string& name) {
  std::string names;
  for (const Class& known : classes()) {
    if (name == known.name) {
      return known;
    }
    names += names.empty() ? known.name : std::string(", ") + known.name;
  }
  fail(
      Kind::invalid,
      "[tokenizer] a tiktoken file needs tokenizer_config.json's tokenizer_class to be one of {}; got \"{}\"",
      names,
      name);
}

[[noreturn]] void broken(std::string_view line) {
  fail(Kind::invalid, "[tokenizer] a tiktoken file's line is base64, a space and the line's number; got \"{}\"", line);
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

/** All tokens by id, byte-level ones of them by rank, as a tokenizer.json. */
std::string json_of(const PreTokenizer& pre, const std::vector<std::string>& all, const Merges& merges) {
  check_unique(all, "tokenizer");
  return tokenizer_json(
      pre.nfc ? R"({"type":"NFC"})" : "",
      pre_tokenizer_json(pre),
      R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})",
      bpe_json({.tokens = all, .merges = merges, .ignore_merges = true}));
}

/** Of files up to version 7 that name none (mistral-common's tekken.py); the first ids, in this order. */
constexpr const char* older_tekken_tokens[] = {
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]"};

[[noreturn]] void broken_tekken(const char* what) {
  fail(Kind::invalid, "[tokenizer] tekken.json: {}", what);
}

const json::value& member(const json::object& object, const char* key) {
  const json::value* value = object.if_contains(key);
  if (value == nullptr) {
    fail(Kind::invalid, "[tokenizer] tekken.json: '{}' is missing", key);
  }
  return *value;
}

std::string tekken_text(const json::value& entry, const char* key) {
  const json::value* value = entry.is_object() ? entry.get_object().if_contains(key) : nullptr;
  if (value == nullptr || !value->is_string()) {
    fail(Kind::invalid, "[tokenizer] tekken.json: a token has no '{}'; got {}", key, json_excerpt(entry));
  }
  return std::string(value->get_string());
}

size_t tekken_count(const json::object& config, const char* key) {
  const json::value& value = member(config, key);
  if (!value.is_int64() || value.get_int64() < 0 || value.get_int64() > 1 << 24) {
    fail(Kind::invalid, "[tokenizer] tekken.json: '{}' must be a count; got {}", key, json_excerpt(value));
  }
  return static_cast<size_t>(value.get_int64());
}

/** By id: those that the file names, and numbered ones up to `count`. */
std::vector<std::string> tekken_special(const json::object& file, size_t count) {
  std::vector<std::string> out;
  const json::value* named = file.if_contains("special_tokens");
  if (named != nullptr && named->is_array()) {
    for (const json::value& token : named->get_array()) {
      out.push_back(tekken_text(token, "token_str"));
    }
  } else {
    out.assign(std::begin(older_tekken_tokens), std::end(older_tekken_tokens));
  }
  if (out.size() > count) {
    broken_tekken("it has more special tokens than 'default_num_special_tokens'");
  }
  while (out.size() < count) {
    out.push_back(fmt::format("<SPECIAL_{}>", out.size()));
  }
  return out;
}

} // namespace

RankedTokenizer tiktoken_tokenizer(const TiktokenFiles& files) {
  const Class& kind = class_of(files.tokenizer_class);
  const std::vector<std::string> bytes = tokens_of(files.ranks);
  std::vector<std::string> tokens;
  const Merges merges = merges_of(bytes, tokens);
  RankedTokenizer out{.source = {}, .bos = kind.bos, .eos = kind.eos};
  std::vector<std::string> all = tokens;
  for (size_t i = 0; i < kind.special; ++i) {
    const auto id = static_cast<int32_t>(bytes.size() + i);
    const size_t number = kind.by_id ? bytes.size() + i : i - kind.named.size();
    const auto given = files.added.find(id);
    auto token = given != files.added.end() ? given->second : AddedToken{.id = id, .content = {}, .special = true};
    if (token.content.empty()) {
      token.content = i < kind.named.size() ? kind.named[i] : fmt::format(fmt::runtime(kind.numbered), number);
    }
    all.push_back(token.content);
    out.source.additions.tokens.push_back(std::move(token));
  }
  out.source.json = json_of(find_pre_tokenizer(kind.pre), all, merges);
  return out;
}

RankedTokenizer tekken_tokenizer(const std::string& text) {
  const json::value parsed = parse_json(text, "tekken.json");
  const json::object* file = parsed.if_object();
  const json::object* config = file ? member(*file, "config").if_object() : nullptr;
  const json::array* vocabulary = config ? member(*file, "vocab").if_array() : nullptr;
  if (vocabulary == nullptr || !member(*config, "pattern").is_string()) {
    broken_tekken("it must hold a 'config' with a 'pattern', and a list 'vocab'");
  }
  const size_t special = tekken_count(*config, "default_num_special_tokens");
  const size_t size = tekken_count(*config, "default_vocab_size");
  if (size < special || size - special > vocabulary->size()) {
    broken_tekken("'default_vocab_size' is no more than the special tokens and the vocabulary together");
  }
  std::vector<std::string> bytes;
  for (const json::value& token : *vocabulary) { // by rank; the model knows the first ones
    if (bytes.size() == size - special) {
      break;
    }
    const std::string base64 = tekken_text(token, "token_bytes");
    bytes.push_back(from_base64(base64, base64));
  }
  RankedTokenizer out{.source = {}, .bos = "<s>", .eos = "</s>"};
  std::vector<std::string> all = tekken_special(*file, special), tokens;
  const Merges merges = merges_of(bytes, tokens);
  for (const std::string& content : all) {
    const auto id = static_cast<int32_t>(out.source.additions.tokens.size());
    out.source.additions.tokens.push_back({.id = id, .content = content, .special = true});
  }
  all.insert(all.end(), tokens.begin(), tokens.end());
  const std::string pattern(member(*config, "pattern").get_string());
  out.source.json = json_of({.name = "tekken", .splits = {pattern.c_str()}}, all, merges);
  return out;
}

} // namespace parallm
