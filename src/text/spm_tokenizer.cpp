#include "text/spm_tokenizer.h"

#include "base/error.h"
#include "text/tokenizer_json.h"

#include <boost/unordered/unordered_flat_set.hpp>

#include <algorithm>
#include <cctype>

namespace parallm {

namespace {

constexpr const char* space = "\u2581";

std::string base64(std::string_view bytes) {
  constexpr std::string_view alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t word = 0;
    for (size_t j = 0; j < 3; ++j) {
      word = word << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0);
    }
    for (size_t j = 0; j < 4; ++j) {
      out += i + j <= bytes.size() ? alphabet[word >> (18 - 6 * j) & 63] : '=';
    }
  }
  return out;
}

std::string replace_text(const char* from, const char* to) {
  return fmt::format(R"({{"type":"Replace","pattern":{{"String":{}}},"content":{}}})", quoted(from), quoted(to));
}

std::string replace_regex(const char* from, const char* to) {
  return fmt::format(R"({{"type":"Replace","pattern":{{"Regex":{}}},"content":{}}})", quoted(from), quoted(to));
}

/** SentencePiece's order: the map, spaces removed, the space in front, spaces
 * written as U+2581. */
std::string normalizer(const SpmModel& m, const SpmOptions& options) {
  std::vector<std::string> steps;
  if (!m.charsmap.empty()) {
    steps.push_back(fmt::format(R"({{"type":"Precompiled","precompiled_charsmap":"{}"}})", base64(m.charsmap)));
  }
  if (m.remove_extra_whitespaces) {
    steps.push_back(replace_regex(R"(\A +| +\z)", ""));
    steps.push_back(replace_regex(" {2,}", " "));
  }
  const char* mark = m.escape_whitespaces ? space : " ";
  if (m.add_dummy_prefix && !options.space_first_only) {
    steps.push_back(fmt::format(R"({{"type":"Prepend","prepend":"{}"}})", mark));
  }
  if (m.escape_whitespaces) {
    steps.push_back(replace_text(" ", space));
  }
  return sequence_json("normalizers", steps);
}

/** One regex that matches any of the texts, the longest first. */
std::string any_of(std::vector<std::string> texts) {
  std::sort(texts.begin(), texts.end(), [](auto& a, auto& b) { return a.size() > b.size(); });
  std::string out;
  for (const std::string& text : texts) {
    out += out.empty() ? "" : "|";
    for (char c : text) {
      out += static_cast<unsigned char>(c) < 0x80 && !std::isalnum(static_cast<unsigned char>(c)) ? "\\" : "";
      out += c;
    }
  }
  return out;
}

std::string pre_tokenizer(const SpmModel& m, const SpmOptions& options, const std::vector<std::string>& inside) {
  std::vector<std::string> steps;
  if (m.add_dummy_prefix && options.space_first_only) {
    steps.push_back(
        fmt::format(R"({{"type":"Metaspace","replacement":"{}","prepend_scheme":"first","split":false}})", space));
  }
  if (!inside.empty()) {
    steps.push_back(fmt::format(
        R"({{"type":"Split","pattern":{{"Regex":{}}},"behavior":"Isolated","invert":false}})", quoted(any_of(inside))));
  }
  return sequence_json("pretokenizers", steps);
}

std::string decoder(const SpmModel& m) {
  std::vector<std::string> steps = {replace_text(space, " ")};
  if (m.byte_fallback) {
    steps.push_back(R"({"type":"ByteFallback"})");
  }
  steps.push_back(R"({"type":"Fuse"})");
  if (m.add_dummy_prefix) {
    steps.push_back(R"({"type":"Strip","content":" ","start":1,"stop":0})");
  }
  return sequence_json("decoders", steps);
}

/** The pairs that make a normal piece of two, by the piece's score: SentencePiece
 * has no list of merges, it joins whatever makes the best piece. */
std::vector<std::pair<std::string_view, std::string_view>> merges(const SpmModel& m) {
  // Millions of look-ups: the standard library's set takes four times as long.
  boost::unordered_flat_set<std::string_view> normal;
  normal.reserve(m.pieces.size());
  for (size_t id = 0; id < m.pieces.size(); ++id) {
    if (m.types[id] == piece_normal) {
      normal.insert(m.pieces[id]);
    }
  }
  struct Merge {
    int32_t id;
    uint32_t left;
  };
  std::vector<Merge> found;
  for (size_t id = 0; id < m.pieces.size(); ++id) {
    std::string_view piece = m.pieces[id];
    for (uint32_t left = 1; m.types[id] == piece_normal && left < piece.size(); ++left) {
      const bool inside_character = (static_cast<unsigned char>(piece[left]) & 0xC0) == 0x80;
      if (!inside_character && normal.contains(piece.substr(0, left)) && normal.contains(piece.substr(left))) {
        found.push_back({static_cast<int32_t>(id), left});
      }
    }
  }
  std::stable_sort(found.begin(), found.end(), [&](auto& a, auto& b) { return m.scores[a.id] > m.scores[b.id]; });
  std::vector<std::pair<std::string_view, std::string_view>> out;
  out.reserve(found.size());
  for (auto [id, left] : found) {
    std::string_view piece = m.pieces[id];
    out.emplace_back(piece.substr(0, left), piece.substr(left));
  }
  return out;
}

} // namespace

TokenizerSource spm_tokenizer(const SpmModel& m, const SpmOptions& options) {
  check_unique(m.pieces, "tokenizer");
  TokenizerSource out;
  std::vector<std::string> inside; // user-defined pieces that stand inside a part
  int unk = -1;
  for (size_t id = 0; id < m.pieces.size(); ++id) {
    const bool user = m.types[id] == piece_user_defined;
    unk = m.types[id] == piece_unknown ? static_cast<int>(id) : unk;
    if (user && m.add_dummy_prefix && !options.user_defined_apart) {
      inside.push_back(m.pieces[id]);
    } else if (user || m.types[id] == piece_control || m.types[id] == piece_unknown) {
      // Without a space in front, what is looked for in the normalized text is found inside a part.
      const bool normalized = user && !options.user_defined_apart;
      out.additions.tokens.push_back({.content = m.pieces[id], .special = !user, .normalized = normalized});
    }
  }
  if (m.kind == SpmKind::unigram && unk < 0) {
    fail(Kind::invalid, "[tokenizer] a unigram model needs an unknown piece; got none of {}", m.pieces.size());
  }
  std::string model = m.kind == SpmKind::unigram ? unigram_json(m.pieces, m.scores, unk, m.byte_fallback)
                                                 : bpe_json(
                                                       {.tokens = m.pieces,
                                                        .merges = merges(m),
                                                        .unk = unk < 0 ? "" : m.pieces[unk],
                                                        .byte_fallback = m.byte_fallback,
                                                        .ignore_merges = !inside.empty()});
  out.json = tokenizer_json(normalizer(m, options), pre_tokenizer(m, options, inside), decoder(m), model);
  return out;
}

} // namespace parallm
