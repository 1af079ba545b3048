// What attention gave to memories, to passages of documents.
#include "mind/citations.h"

#include <doctest/doctest.h>

#include <algorithm>

using namespace parallm;

namespace {

/** A document whose tokens are the pieces, of one character's width each unless they say otherwise. */
RecalledDocument document(MemoryView& view, const std::string& id, const std::vector<std::string>& pieces) {
  std::string text;
  std::vector<TextSpan> spans;
  uint32_t at = 0;
  for (const std::string& piece : pieces) {
    text += piece;
    const auto size =
        static_cast<uint32_t>(std::count_if(piece.begin(), piece.end(), [](char c) { return (c & 0xC0) != 0x80; }));
    spans.push_back({at, at + size});
    at += size;
  }
  RecalledDocument out{.space = "s", .id = id, .begin = view.tokens, .tokens = static_cast<int>(pieces.size())};
  out.words = std::make_shared<Words>(make_words(std::move(text), std::move(spans)));
  view.tokens += out.tokens;
  view.documents.push_back(out);
  return out;
}

} // namespace

TEST_CASE("citations: sentences by what they got above the background") {
  MemoryView view;
  document(view, "a", {"\u00C4pfel", " are", " red", ".", " Pears", " grow", "."}); // 0-6
  document(view, "b", {"One", " 3.5", " two", "\n", "three"}); // 7-11
  AnswerUse use;
  use.whole.queries = 2;
  use.whole.mass = 1.0f;
  use.whole.memories = {{0, 0.8f, 0.5f, 3}, {4, 0.1f, 0.9f, 1}, {5, 0.1f, 0.2f, 2}, {8, 0.02f, 0.7f, 1}};
  use.tokens.resize(2);
  use.tokens[0].memories = {{4, 0.1f, 0.9f, 1}};
  use.tokens[1].memories = {{0, 0.4f, 0.5f, 1}, {5, 0.1f, 0.2f, 1}};

  SUBCASE("none: what has most is first") {
    const Citations cited = cite(view, use, false, 10);
    CHECK(cited.mass == doctest::Approx(0.5));
    REQUIRE(cited.list.size() == 3);
    CHECK(cited.list[0].text == "\u00C4pfel are red.");
    CHECK(cited.list[0].score == doctest::Approx(0.4));
    CHECK(cited.list[1].text == "Pears grow."); // without the space before it
    CHECK(cited.list[1].place.begin == 15);
    CHECK(cited.list[1].place.end == 26);
    CHECK(cited.list[1].token_begin == 4);
    CHECK(cited.list[1].token_end == 7);
    CHECK(cited.list[1].count == 3);
    CHECK(cited.list[1].similarity == doctest::Approx(0.9));
    CHECK(cited.list[1].answer_tokens == std::vector<int>{0});
    CHECK(cited.list[2].id == "b");
    CHECK(cited.list[2].text == "One 3.5 two"); // a point inside a number ends nothing, a new line does
  }
  SUBCASE("a background takes what every prompt gives") {
    std::vector<float> background(view.tokens, 0.0f);
    background[0] = 0.25f;
    view.recall.background = std::make_shared<const std::vector<float>>(background);
    const Citations cited = cite(view, use, false, 10);
    REQUIRE(cited.list.size() == 2); // the first has less than its background
    CHECK(cited.list[0].text == "Pears grow.");
    CHECK(cited.list[0].answer_tokens == std::vector<int>{0, 1});
  }
  SUBCASE("by document") {
    const Citations cited = cite(view, use, true, 10);
    REQUIRE(cited.list.size() == 2);
    CHECK(cited.list[0].id == "a");
    CHECK(cited.list[0].count == 6);
    CHECK(cited.list[0].answer_tokens == std::vector<int>{0, 1});
    CHECK(cite(view, use, true, 1).list.size() == 1);
  }
  SUBCASE("no answer, no citation") {
    CHECK(cite(view, {}, true, 10).list.empty());
    CHECK(cite({}, use, true, 10).list.empty());
  }
}

TEST_CASE("citations: a text without sentences is cut into pieces") {
  MemoryView view;
  document(view, "a", std::vector<std::string>(150, " w"));
  AnswerUse use;
  use.whole.queries = 1;
  use.whole.mass = 0.3f;
  use.whole.memories = {{0, 0.1f, 0, 1}, {149, 0.2f, 0, 1}};
  const Citations cited = cite(view, use, false, 10);
  REQUIRE(cited.list.size() == 2);
  CHECK(cited.list[0].token_begin == 128);
  CHECK(cited.list[0].token_end == 150);
  CHECK(cited.list[1].token_end == 64);
}
