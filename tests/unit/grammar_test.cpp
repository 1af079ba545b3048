#include "text/grammar.h"

#include "base/error.h"
#include "unit/tokenizers.h"

#include <doctest/doctest.h>

#include <random>
#include <string>

using namespace parallm;

namespace {

constexpr int end_id = 261;
constexpr int vocabulary = 300; // wider than the tokenizer
const std::vector<int32_t> ends = {end_id, 263};

struct Walk {
  Walk(const Grammars& grammars, GrammarKind kind, std::string_view source) : grammar(grammars.compile(kind, source)) {}

  bool can(int32_t id) {
    std::vector<uint32_t> words((vocabulary + 31) / 32);
    grammar.allowed(words);
    return words[id / 32] >> (id % 32) & 1;
  }
  void take(std::string_view text) {
    for (unsigned char c : text) {
      REQUIRE(can(c));
      grammar.accept(c);
    }
  }

  Grammar grammar;
};

} // namespace

TEST_CASE("grammar: a regular expression") {
  Tokenizer t(test::byte_level());
  Grammars grammars(t, vocabulary, ends);
  Walk walk(grammars, GrammarKind::regex, "a[bc]+");
  CHECK(walk.can('a'));
  CHECK_FALSE(walk.can('b'));
  CHECK_FALSE(walk.can(end_id));
  walk.take("ab");
  CHECK(walk.can('c'));
  CHECK(walk.can(end_id));
  CHECK(walk.can(263));
  CHECK_FALSE(walk.can(265)); // no such token
  CHECK_FALSE(walk.can(299)); // the logits' padding
  CHECK_THROWS_AS(walk.grammar.accept('x'), Error);
}

TEST_CASE("grammar: at its end only the end tokens are left") {
  Tokenizer t(test::byte_level());
  Grammars grammars(t, vocabulary, ends);
  Walk walk(grammars, GrammarKind::lark, "start: \"ab\"");
  walk.take("ab");
  CHECK(walk.can(end_id));
  CHECK_FALSE(walk.can('a'));
  walk.grammar.accept(end_id);
  CHECK(walk.can(end_id));
}

TEST_CASE("grammar: a JSON schema, and white space that ends") {
  Tokenizer t(test::byte_level());
  Grammars grammars(t, vocabulary, ends);
  const char* schema =
      R"({"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],"additionalProperties":false})";
  Walk walk(grammars, GrammarKind::json_schema, schema);
  walk.take("{\"a\": 12}");
  CHECK(walk.can(end_id));
  Walk spaces(grammars, GrammarKind::json_schema, schema);
  spaces.take("{");
  int n = 0;
  while (n < 100 && spaces.can(' ')) {
    spaces.take(" ");
    ++n;
  }
  CHECK(n == 20);
  CHECK(spaces.can('"'));
  CHECK_FALSE(spaces.can('}'));
}

TEST_CASE("grammar: a random walk over a JSON object can always go on") {
  Tokenizer t(test::byte_level());
  Grammars grammars(t, vocabulary, ends);
  std::mt19937 random(4);
  for (int round = 0; round < 5; ++round) {
    Walk walk(grammars, GrammarKind::json_object, "");
    CHECK(walk.can('{'));
    CHECK_FALSE(walk.can('['));
    for (int step = 0; step < 60; ++step) {
      std::vector<uint32_t> words((vocabulary + 31) / 32);
      walk.grammar.allowed(words);
      std::vector<int32_t> open;
      for (int id = 0; id < vocabulary; ++id) {
        if (words[id / 32] >> (id % 32) & 1) {
          open.push_back(id);
        }
      }
      REQUIRE_FALSE(open.empty());
      int32_t next = open[random() % open.size()];
      walk.grammar.accept(next);
      if (next == end_id || next == 263) {
        break;
      }
    }
  }
}

TEST_CASE("grammar: errors are the compiler's own words") {
  Tokenizer t(test::byte_level());
  Grammars grammars(t, vocabulary, ends);
  auto text = [&](GrammarKind kind, std::string_view source) -> std::string {
    try {
      grammars.compile(kind, source);
    } catch (const Error& e) {
      CHECK(e.kind == Kind::invalid);
      return e.what();
    }
    return "none";
  };
  CHECK(text(GrammarKind::json_schema, "{").starts_with("[grammar] the schema"));
  CHECK(text(GrammarKind::json_schema, R"({"type":"nothing"})").find("nothing") != std::string::npos);
  CHECK(text(GrammarKind::regex, "a(").starts_with("[grammar] "));
  CHECK(text(GrammarKind::lark, "start: x").find("x") != std::string::npos);
  CHECK_THROWS_AS(Grammars(t, 10, ends), Error);
  CHECK_THROWS_AS(Grammars(t, vocabulary, {}), Error);
  CHECK_THROWS_AS(Grammars(t, vocabulary, std::vector<int32_t>{vocabulary}), Error);
}

TEST_CASE("grammar: outlives the tokenizer's C++ object") {
  auto t = std::make_unique<Tokenizer>(test::byte_level());
  auto grammars = std::make_unique<Grammars>(*t, vocabulary, ends);
  t.reset();
  Walk walk(*grammars, GrammarKind::regex, "ab");
  grammars.reset();
  walk.take("ab");
}
