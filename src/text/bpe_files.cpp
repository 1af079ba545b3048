#include "text/bpe_files.h"

#include "base/error.h"
#include "base/json.h"
#include "text/pre_tokenizers.h"
#include "text/tokenizer_json.h"

namespace parallm {

namespace {

/** transformers' tokenizer classes that read these files, and what each parts
 * texts by. */
struct Class {
  const char* name;
  const char* pre;
};

constexpr Class classes[] = {
    {"GPT2Tokenizer", "gpt-2"},
    {"GPT2TokenizerFast", "gpt-2"},
    {"CodeGenTokenizer", "gpt-2"},
    {"CodeGenTokenizerFast", "gpt-2"},
    {"GPTNeoXTokenizer", "gpt-2"},
    {"GPTNeoXTokenizerFast", "gpt-2"},
    {"Qwen2Tokenizer", "qwen2"},
    {"Qwen2TokenizerFast", "qwen2"},
    {"Qwen3_5Tokenizer", "qwen35"},
};

const PreTokenizer& pre_of(const std::string& name) {
  std::string names;
  for (const Class& known : classes) {
    if (name == known.name) {
      return find_pre_tokenizer(known.pre);
    }
    names += names.empty() ? known.name : std::string(", ") + known.name;
  }
  fail(
      Kind::invalid,
      "[tokenizer] vocab.json and merges.txt need tokenizer_config.json's tokenizer_class to be one of {}; got \"{}\"",
      names,
      name);
}

std::vector<std::string> tokens_of(const std::string& text) {
  json::value vocab = parse_json(text, "vocab.json");
  if (!vocab.is_object()) {
    fail(Kind::invalid, "[tokenizer] vocab.json must be an object of tokens and ids; got {}", json_kind(vocab));
  }
  constexpr int64_t most = 1 << 24;
  std::vector<std::string> tokens;
  for (auto& [token, id] : vocab.get_object()) {
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > most) {
      fail(Kind::invalid, "[tokenizer] vocab.json: the id of \"{}\" is no id", std::string(token));
    }
    const auto at = static_cast<size_t>(id.get_int64());
    tokens.resize(std::max(tokens.size(), at + 1));
    if (!tokens[at].empty()) {
      fail(Kind::invalid, "[tokenizer] vocab.json has the id {} twice", at);
    }
    tokens[at] = token;
  }
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) { // an id without a token: a name that no text is split into
      tokens[id] = fmt::format("[EMPTY_{}]", id);
    }
  }
  return tokens;
}

std::vector<std::pair<std::string_view, std::string_view>> merges_of(std::string_view text) {
  std::vector<std::pair<std::string_view, std::string_view>> out;
  bool first = true;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line = text.substr(begin, end - begin);
    begin = end + 1;
    line.remove_suffix(line.ends_with('\r') ? 1 : 0);
    if (line.empty() || (first && line.starts_with("#version"))) {
      first = false;
      continue;
    }
    first = false;
    const size_t space = line.find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == line.size()) {
      fail(Kind::invalid, "[tokenizer] merges.txt: a merge is two pieces with a space between; got \"{}\"", line);
    }
    out.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  return out;
}

} // namespace

TokenizerSource bpe_tokenizer(const BpeFiles& files) {
  const PreTokenizer& pre = pre_of(files.tokenizer_class);
  const std::vector<std::string> tokens = tokens_of(files.vocab);
  TokenizerSource out;
  out.json = tokenizer_json(
      pre.nfc ? R"({"type":"NFC"})" : "",
      pre_tokenizer_json(pre, files.add_prefix_space),
      R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})",
      bpe_json({.tokens = tokens, .merges = merges_of(files.merges)}));
  return out;
}

} // namespace parallm
