#include "text/gguf_tokenizer.h"

#include "base/error.h"
#include "text/pre_tokenizers.h"
#include "text/spm_tokenizer.h"
#include "text/tokenizer_json.h"

#include <algorithm>

namespace parallm {

namespace {

std::pair<std::string_view, std::string_view> merge(std::string_view text) {
  size_t space = text.find(' ', 1);
  if (space == std::string::npos) {
    fail(Kind::invalid, "[gguf_tokenizer] a merge is two pieces with a space between; got \"{}\"", text);
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

TokenizerSource byte_level(const GgufVocabulary& v) {
  const PreTokenizer& pre = find_pre_tokenizer(v.pre);
  if (v.merges.empty()) {
    fail(Kind::invalid, "[gguf_tokenizer] a tokenizer of model gpt2 needs tokenizer.ggml.merges; got none");
  }
  TokenizerSource out;
  for (size_t id = 0; id < v.types.size(); ++id) {
    const int32_t type = v.types[id];
    if (type == piece_unknown || type == piece_control || type == piece_user_defined) {
      out.additions.tokens.push_back({.content = v.tokens[id], .special = type != piece_user_defined});
    }
  }
  BpeModel model{.tokens = v.tokens, .ignore_merges = pre.ignore_merges};
  model.merges.reserve(v.merges.size());
  for (const std::string& text : v.merges) {
    model.merges.push_back(merge(text));
  }
  out.json = tokenizer_json(
      pre.nfc ? R"({"type":"NFC"})" : "",
      pre_tokenizer_json(pre),
      R"({"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true})",
      bpe_json(model));
  return out;
}

TokenizerSource sentence_piece(const GgufVocabulary& v) {
  if (v.scores.size() != v.tokens.size() || v.types.empty()) {
    fail(
        Kind::invalid,
        "[gguf_tokenizer] a tokenizer of model llama needs a score and a type for each of its {} tokens; got {} and {}",
        v.tokens.size(),
        v.scores.size(),
        v.types.size());
  }
  const bool bytes = std::find(v.types.begin(), v.types.end(), piece_byte) != v.types.end();
  const SpmModel model{
      .kind = SpmKind::bpe,
      .pieces = v.tokens,
      .scores = v.scores,
      .types = v.types,
      .byte_fallback = bytes,
      .add_dummy_prefix = v.add_space_prefix.value_or(true),
      .remove_extra_whitespaces = v.remove_extra_whitespaces.value_or(false)};
  return spm_tokenizer(model, {.user_defined_apart = true});
}

std::string end_token(const GgufVocabulary& v, bool wanted, int32_t id, const char* key) {
  if (!wanted) {
    return "";
  }
  if (id < 0 || static_cast<size_t>(id) >= v.tokens.size()) {
    fail(
        Kind::invalid,
        "[gguf_tokenizer] tokenizer.ggml.{} names no token of the vocabulary of {}; got {}",
        key,
        v.tokens.size(),
        id);
  }
  return v.tokens[id];
}

} // namespace

TokenizerSource gguf_tokenizer(GgufVocabulary v) {
  const bool spm = v.model == "llama";
  if (!spm && v.model != "gpt2") {
    fail(Kind::invalid, "[gguf_tokenizer] tokenizer.ggml.model must be gpt2 or llama; got \"{}\"", v.model);
  }
  if (!v.types.empty() && v.types.size() != v.tokens.size()) {
    fail(Kind::invalid, "[gguf_tokenizer] {} tokens, but {} token types", v.tokens.size(), v.types.size());
  }
  for (size_t id = 0; id < v.tokens.size(); ++id) {
    if (v.tokens[id].empty()) { // as llama.cpp names them, so that they differ
      v.tokens[id] = fmt::format("[EMPTY_{}]", id);
    }
  }
  check_unique(v.tokens, "gguf_tokenizer");
  TokenizerSource out = spm ? sentence_piece(v) : byte_level(v);
  // A kind that adds BOS by itself does so only where the file has one.
  const bool begins = v.add_bos.value_or(v.bos >= 0 && (spm || find_pre_tokenizer(v.pre).add_bos));
  out.additions.ends = Ends{
      .begin = end_token(v, begins, v.bos, "bos_token_id"),
      .end = end_token(v, v.add_eos.value_or(false), v.eos, "eos_token_id")};
  return out;
}

} // namespace parallm
