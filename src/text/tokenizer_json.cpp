#include "text/tokenizer_json.h"

#include "base/error.h"

#include <boost/unordered/unordered_flat_set.hpp>

namespace parallm {

namespace {

void append_quoted(std::string& out, std::string_view text) {
  out += '"';
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
  out += '"';
}

const char* boolean(bool value) {
  return value ? "true" : "false";
}

} // namespace

std::string quoted(std::string_view text) {
  std::string out;
  append_quoted(out, text);
  return out;
}

std::string bpe_json(const BpeModel& model) {
  std::string out = fmt::format(
      R"({{"type":"BPE","dropout":null,"unk_token":{},"continuing_subword_prefix":null,"end_of_word_suffix":null,)"
      R"("fuse_unk":{},"byte_fallback":{},"ignore_merges":{},"vocab":{{)",
      model.unk.empty() ? "null" : quoted(model.unk),
      boolean(!model.unk.empty()),
      boolean(model.byte_fallback),
      boolean(model.ignore_merges));
  for (size_t id = 0; id < model.tokens.size(); ++id) {
    out += id > 0 ? "," : "";
    append_quoted(out, model.tokens[id]);
    out += ':';
    out += std::to_string(id);
  }
  out += "},\"merges\":[";
  for (size_t i = 0; i < model.merges.size(); ++i) {
    out += i > 0 ? ",[" : "[";
    append_quoted(out, model.merges[i].first);
    out += ',';
    append_quoted(out, model.merges[i].second);
    out += ']';
  }
  return out + "]}";
}

std::string
unigram_json(const std::vector<std::string>& tokens, const std::vector<float>& scores, int unk, bool byte_fallback) {
  std::string out = fmt::format(
      R"({{"type":"Unigram","unk_id":{},"byte_fallback":{},"vocab":[)",
      unk < 0 ? "null" : std::to_string(unk),
      boolean(byte_fallback));
  for (size_t id = 0; id < tokens.size(); ++id) {
    out += id > 0 ? ",[" : "[";
    append_quoted(out, tokens[id]);
    out += fmt::format(",{}]", static_cast<double>(scores[id]));
  }
  return out + "]}";
}

std::string tokenizer_json(
    const std::string& normalizer,
    const std::string& pre_tokenizer,
    const std::string& decoder,
    const std::string& model) {
  auto part = [](const std::string& json) { return json.empty() ? "null" : json; };
  std::string out = R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":)";
  out += part(normalizer) + R"(,"pre_tokenizer":)" + part(pre_tokenizer);
  out += R"(,"post_processor":null,"decoder":)" + part(decoder) + R"(,"model":)";
  return out + model + "}";
}

std::string sequence_json(const char* list, const std::vector<std::string>& steps) {
  if (steps.empty()) {
    return "";
  }
  std::string out = fmt::format(R"({{"type":"Sequence","{}":[)", list);
  for (size_t i = 0; i < steps.size(); ++i) {
    out += (i > 0 ? "," : "") + steps[i];
  }
  return out + "]}";
}

void check_unique(const std::vector<std::string>& tokens, const char* where) {
  boost::unordered_flat_set<std::string_view> seen;
  seen.reserve(tokens.size());
  for (const std::string& token : tokens) {
    if (!seen.insert(token).second) {
      fail(Kind::invalid, "[{}] the vocabulary has a token twice; got \"{}\"", where, token);
    }
  }
}

} // namespace parallm
