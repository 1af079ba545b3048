#include "text/gguf_tokenizer.h"

#include "base/error.h"

#include <algorithm>
#include <string_view>
#include <unordered_set>

namespace parallm {

namespace {

// The splits are those of the models' own tokenizer.json files; llama.cpp's
// llama-vocab.cpp names them.
constexpr const char* gpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* llama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* qwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* tekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* gpt4o =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* deepseek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Pre {
  const char* name;
  bool digits = false; // single digits first
  std::vector<const char*> splits{}; // none: GPT-2's own
  bool ignore_merges = false; // a word in the vocabulary is not built
  bool nfc = false;
};

const std::vector<Pre>& known() {
  static const std::vector<Pre> all = {
      {.name = "smollm", .digits = true},
      {.name = "starcoder", .digits = true},
      {.name = "refact", .digits = true},
      {.name = "command-r", .digits = true},
      {.name = "codeshell", .digits = true},
      {.name = "exaone", .digits = true},
      {.name = "gpt-2"},
      {.name = "olmo"},
      {.name = "mpt"},
      {.name = "llama-bpe", .splits = {llama3}, .ignore_merges = true},
      {.name = "llama3", .splits = {llama3}, .ignore_merges = true},
      {.name = "llama-v3", .splits = {llama3}, .ignore_merges = true},
      {.name = "falcon3", .splits = {llama3}, .ignore_merges = true},
      {.name = "dbrx", .splits = {llama3}},
      {.name = "smaug-bpe", .splits = {llama3}},
      {.name = "qwen2", .splits = {qwen2}, .nfc = true},
      {.name = "deepseek-r1-qwen", .splits = {qwen2}, .nfc = true},
      {.name = "stablelm2", .splits = {qwen2}},
      {.name = "tekken", .splits = {tekken}, .ignore_merges = true},
      {.name = "gpt-4o", .splits = {gpt4o}},
      {.name = "deepseek-v3", .splits = {R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+", deepseek3}},
      // What llama.cpp does where a file names no kind of its own.
      {.name = "default", .splits = {R"([\p{P}\$\+<=>\^~\|]+)", gpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
  };
  return all;
}

const Pre& find(const std::string& name) {
  std::string names;
  for (const Pre& pre : known()) {
    if (name == pre.name || (name.empty() && pre.name == std::string("default"))) {
      return pre;
    }
    names += names.empty() ? pre.name : std::string(", ") + pre.name;
  }
  fail(Kind::invalid, "[gguf_tokenizer] tokenizer.ggml.pre is none of {}; got \"{}\"", names, name);
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<int>(c));
    } else {
      out += c;
    }
  }
  return out + '"';
}

template <typename Items, typename Each>
std::string joined(const Items& items, Each each) {
  std::string out;
  for (size_t i = 0; i < items.size(); ++i) {
    std::string item = each(items[i], i);
    if (!item.empty()) {
      out += out.empty() ? item : "," + item;
    }
  }
  return out;
}

constexpr int unknown = 2, control = 3, user_defined = 4;

std::string added_tokens(const GgufVocabulary& v) {
  return joined(v.types, [&](int32_t type, size_t id) -> std::string {
    if (type != unknown && type != control && type != user_defined) {
      return {};
    }
    return fmt::format(
        R"({{"id":{},"content":{},"single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":{}}})",
        id,
        quoted(v.tokens[id]),
        type != user_defined);
  });
}

std::string pre_tokenizer(const Pre& pre) {
  std::string steps;
  if (pre.digits) {
    steps += R"({"type":"Digits","individual_digits":true},)";
  }
  for (const char* split : pre.splits) {
    steps += fmt::format(
        R"({{"type":"Split","pattern":{{"Regex":{}}},"behavior":"Isolated","invert":false}},)", quoted(split));
  }
  return fmt::format(
      R"({{"type":"Sequence","pretokenizers":[{}{{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":{}}}]}})",
      steps,
      pre.splits.empty());
}

std::string post_processor(const GgufVocabulary& v) {
  if (!v.add_bos) {
    return "null";
  }
  if (v.bos < 0 || static_cast<size_t>(v.bos) >= v.tokens.size()) {
    fail(
        Kind::invalid,
        "[gguf_tokenizer] add_bos_token without a BOS in the vocabulary of {}; got id {}",
        v.tokens.size(),
        v.bos);
  }
  std::string bos = quoted(v.tokens[v.bos]);
  std::string bos_step = fmt::format(R"({{"SpecialToken":{{"id":{},"type_id":0}}}})", bos);
  return fmt::format(
      R"({{"type":"TemplateProcessing","single":[{0},{{"Sequence":{{"id":"A","type_id":0}}}}],)"
      R"("pair":[{0},{{"Sequence":{{"id":"A","type_id":0}}}},{{"Sequence":{{"id":"B","type_id":1}}}}],)"
      R"("special_tokens":{{{1}:{{"id":{1},"ids":[{2}],"tokens":[{1}]}}}}}})",
      bos_step,
      bos,
      v.bos);
}

std::string merge(const std::string& text) {
  size_t space = text.find(' ', 1);
  if (space == std::string::npos) {
    fail(Kind::invalid, "[gguf_tokenizer] a merge is two pieces with a space between; got \"{}\"", text);
  }
  return fmt::format(
      "[{},{}]", quoted(std::string_view(text).substr(0, space)), quoted(std::string_view(text).substr(space + 1)));
}

void check_tokens(const GgufVocabulary& v) {
  if (!v.types.empty() && v.types.size() != v.tokens.size()) {
    fail(Kind::invalid, "[gguf_tokenizer] {} tokens, but {} token types", v.tokens.size(), v.types.size());
  }
  std::unordered_set<std::string_view> seen;
  for (const std::string& token : v.tokens) {
    if (!seen.insert(token).second) {
      fail(Kind::invalid, "[gguf_tokenizer] the vocabulary has a token twice; got \"{}\"", token);
    }
  }
}

} // namespace

std::string tokenizer_json(const GgufVocabulary& v) {
  if (v.model != "gpt2") {
    fail(Kind::invalid, "[gguf_tokenizer] tokenizer.ggml.model is not gpt2; got \"{}\"", v.model);
  }
  const Pre& pre = find(v.pre);
  check_tokens(v);
  auto entry = [](const std::string& token, size_t id) { return fmt::format("{}:{}", quoted(token), id); };
  auto pair = [](const std::string& text, size_t) { return merge(text); };
  return fmt::format(
      R"({{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{}],"normalizer":{},"pre_tokenizer":{},)"
      R"("post_processor":{},"decoder":{{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}},)"
      R"("model":{{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,)"
      R"("fuse_unk":false,"byte_fallback":false,"ignore_merges":{},"vocab":{{{}}},"merges":[{}]}}}})",
      added_tokens(v),
      pre.nfc ? R"({"type":"NFC"})" : "null",
      pre_tokenizer(pre),
      post_processor(v),
      pre.ignore_merges,
      joined(v.tokens, entry),
      joined(v.merges, pair));
}

} // namespace parallm
