#include "mind/citations.h"

#include <algorithm>
#include <numeric>

namespace parallm {

namespace {

constexpr int most_passage = 64; // tokens

struct Passage {
  size_t document; // of the view's
  int begin, end; // memories, counted through the whole view
};

/** The text's characters, by where each begins. */
std::vector<size_t> starts_of(const std::string& text) {
  std::vector<size_t> out;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text[i] & 0xC0) != 0x80) {
      out.push_back(i);
    }
  }
  out.push_back(text.size());
  return out;
}

std::string cut(const std::string& text, const std::vector<size_t>& starts, TextSpan place) {
  const size_t last = starts.size() - 1;
  const size_t begin = starts[std::min<size_t>(place.begin, last)], end = starts[std::min<size_t>(place.end, last)];
  return text.substr(begin, std::max(begin, end) - begin);
}

/** Whether a sentence ends with what stands before `end`. */
bool ends_sentence(const std::string& token, const std::string& next) {
  static constexpr std::string_view wide[] = {"\u3002", "\uFF01", "\uFF1F"};
  if (token.find('\n') != std::string::npos ||
      std::any_of(std::begin(wide), std::end(wide), [&](std::string_view mark) { return token.ends_with(mark); })) {
    return true;
  }
  const bool mark = token.ends_with('.') || token.ends_with('!') || token.ends_with('?');
  return mark && (next.empty() || next.starts_with(' '));
}

std::vector<Passage> passages_of(const MemoryView& view) {
  std::vector<Passage> out;
  for (size_t d = 0; d < view.documents.size(); ++d) {
    const RecalledDocument& document = view.documents[d];
    const Words& words = *document.words;
    const auto starts = starts_of(words.text);
    int begin = 0;
    for (int i = 0; i < document.tokens; ++i) {
      const bool last = i + 1 == document.tokens;
      const std::string token = cut(words.text, starts, words.spans[i]);
      // Tokenizers differ in whose a space is: what follows is seen in the text.
      const std::string next = cut(words.text, starts, {words.spans[i].end, words.spans[i].end + 1});
      if (last || i + 1 - begin == most_passage || ends_sentence(token, next)) {
        out.push_back({d, document.begin + begin, document.begin + i + 1});
        begin = i + 1;
      }
    }
  }
  return out;
}

} // namespace

Citations cite(const MemoryView& view, const AnswerUse& use, bool by_document, int most) {
  Citations out;
  if (use.whole.queries == 0 || view.documents.empty()) {
    return out;
  }
  const float queries = static_cast<float>(use.whole.queries);
  out.mass = use.whole.mass / queries;
  const auto passages = passages_of(view);
  const auto background = [&](int memory) {
    const auto& means = view.recall.background;
    return means && memory < static_cast<int>(means->size()) ? (*means)[memory] : 0.0f;
  };
  const auto passage_of = [&](int memory) {
    const auto after = std::upper_bound(
        passages.begin(), passages.end(), memory, [](int m, const Passage& passage) { return m < passage.begin; });
    return static_cast<size_t>(after - passages.begin()) - 1;
  };

  struct Sum {
    double score = 0; // above the background
    float similarity = -1;
    int count = 0;
    std::vector<int> answer_tokens;
  };
  std::vector<Sum> sums(passages.size());
  for (const UsedMemory& used : use.whole.memories) {
    Sum& sum = sums[passage_of(used.memory)];
    sum.score += cited_mass(used, use.whole.queries, background(used.memory)) / queries;
    sum.similarity = std::max(sum.similarity, used.cosine);
    sum.count += used.count;
  }
  for (size_t t = 0; t < use.tokens.size(); ++t) {
    std::vector<std::pair<size_t, float>> given; // of passages
    for (const UsedMemory& used : use.tokens[t].memories) {
      const size_t p = passage_of(used.memory);
      auto known = std::find_if(given.begin(), given.end(), [&](auto& entry) { return entry.first == p; });
      known = known == given.end() ? given.insert(given.end(), {p, 0.0f}) : known;
      known->second += cited_mass(used, 1, background(used.memory));
    }
    const auto best =
        std::max_element(given.begin(), given.end(), [](auto& a, auto& b) { return a.second < b.second; });
    if (best != given.end() && best->second > 0) {
      sums[best->first].answer_tokens.push_back(static_cast<int>(t));
    }
  }

  std::vector<size_t> order(passages.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return sums[a].score > sums[b].score; });
  std::vector<int> entry_of(view.documents.size(), -1); // where it is in the list
  for (const size_t p : order) {
    const size_t d = passages[p].document;
    const RecalledDocument& document = view.documents[d];
    const Sum& sum = sums[p];
    if (by_document && entry_of[d] >= 0) { // a lesser passage of a document that is there
      Citation& citation = out.list[entry_of[d]];
      citation.similarity = std::max(citation.similarity, sum.similarity);
      citation.count += sum.count;
      citation.answer_tokens.insert(citation.answer_tokens.end(), sum.answer_tokens.begin(), sum.answer_tokens.end());
      continue;
    }
    if (static_cast<int>(out.list.size()) == most || !(sum.score > 0)) {
      continue;
    }
    entry_of[d] = static_cast<int>(out.list.size());
    const auto& spans = document.words->spans;
    Citation citation{.space = document.space, .id = document.id};
    citation.token_begin = passages[p].begin - document.begin;
    citation.token_end = passages[p].end - document.begin;
    citation.place = {spans[citation.token_begin].begin, spans[citation.token_end - 1].end};
    citation.text = cut(document.words->text, starts_of(document.words->text), citation.place);
    const auto trim = [&](size_t first, size_t last) { // tokens begin or end with blanks, of a byte each
      citation.place.begin += static_cast<uint32_t>(first);
      citation.place.end -= static_cast<uint32_t>(citation.text.size() - last);
      citation.text = citation.text.substr(first, last - first);
    };
    constexpr auto blanks = " \n\t";
    const size_t first = citation.text.find_first_not_of(blanks);
    first == std::string::npos ? trim(0, 0) : trim(first, citation.text.find_last_not_of(blanks) + 1);
    citation.score = static_cast<float>(sum.score);
    citation.similarity = sum.similarity;
    citation.count = sum.count;
    citation.answer_tokens = sum.answer_tokens;
    out.list.push_back(std::move(citation));
  }
  for (Citation& citation : out.list) {
    std::sort(citation.answer_tokens.begin(), citation.answer_tokens.end());
  }
  return out;
}

} // namespace parallm
