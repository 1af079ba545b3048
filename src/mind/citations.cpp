#include "mind/citations.h"

#include <algorithm>
#include <numeric>

namespace parallm {

namespace {

constexpr int most_passage = 64; // tokens

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

size_t byte_of(const std::vector<size_t>& starts, uint32_t character) {
  return starts[std::min<size_t>(character, starts.size() - 1)];
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

Passage make_passage(const Words& words, const std::vector<size_t>& starts, int begin, int end) {
  Passage out{.begin = begin, .end = end, .place = {words.spans[begin].begin, words.spans[end - 1].end}};
  out.byte = byte_of(starts, out.place.begin);
  size_t last = std::max(out.byte, byte_of(starts, out.place.end));
  const auto blank = [&](size_t at) {
    return words.text[at] == ' ' || words.text[at] == '\n' || words.text[at] == '\t';
  };
  for (; out.byte < last && blank(out.byte); ++out.byte) {
    ++out.place.begin;
  }
  for (; out.byte < last && blank(last - 1); --last) {
    --out.place.end;
  }
  out.bytes = last - out.byte;
  return out;
}

} // namespace

Words make_words(std::string text, std::vector<TextSpan> spans) {
  Words words{.text = std::move(text), .spans = std::move(spans)};
  const auto starts = starts_of(words.text);
  const int count = static_cast<int>(words.spans.size());
  const auto cut = [&](TextSpan place) {
    const size_t begin = byte_of(starts, place.begin), end = byte_of(starts, place.end);
    return words.text.substr(begin, std::max(begin, end) - begin);
  };
  for (int i = 0, begin = 0; i < count; ++i) {
    // Tokenizers differ in whose a space is: what follows is seen in the text.
    const uint32_t after = words.spans[i].end;
    if (i + 1 == count || i + 1 - begin == most_passage ||
        ends_sentence(cut(words.spans[i]), cut({after, after + 1}))) {
      words.passages.push_back(make_passage(words, starts, begin, i + 1));
      begin = i + 1;
    }
  }
  return words;
}

Citations cite(const MemoryView& view, const AnswerUse& use, bool by_document, int most) {
  Citations out;
  if (use.whole.queries == 0 || view.documents.empty()) {
    return out;
  }
  const float queries = static_cast<float>(use.whole.queries);
  out.mass = use.whole.mass / queries;
  struct Place {
    size_t document; // of the view's
    const Passage* passage;
    int begin; // its first memory, counted through the whole view
  };
  std::vector<Place> passages;
  for (size_t d = 0; d < view.documents.size(); ++d) {
    for (const Passage& passage : view.documents[d].words->passages) {
      passages.push_back({d, &passage, view.documents[d].begin + passage.begin});
    }
  }
  const auto background = [&](int memory) {
    const auto& means = view.recall.background;
    return means && memory < static_cast<int>(means->size()) ? (*means)[memory] : 0.0f;
  };
  const auto passage_of = [&](int memory) {
    const auto after = std::upper_bound(
        passages.begin(), passages.end(), memory, [](int m, const Place& place) { return m < place.begin; });
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
    const Passage& passage = *passages[p].passage;
    Citation citation{.space = document.space, .id = document.id};
    citation.token_begin = passage.begin;
    citation.token_end = passage.end;
    citation.place = passage.place;
    citation.text = document.words->text.substr(passage.byte, passage.bytes);
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
