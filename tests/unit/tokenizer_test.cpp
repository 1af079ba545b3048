#include "text/tokenizer.h"

#include "base/error.h"
#include "text/ffi.h"
#include "unit/tokenizers.h"

#include <doctest/doctest.h>

using namespace parallm;
using Ids = std::vector<int32_t>;

TEST_CASE("tokenizer: encodes, with padding and truncation turned off") {
  Tokenizer t(test::byte_level());
  CHECK(t.encode("hello world", false) == Ids{259, 260, 'o', 'r', 'l', 'd'});
  CHECK(t.encode("", true).empty());
  CHECK(t.encode("a<|end|>b<tool>", false) == Ids{'a', 261, 'b', 262});
  CHECK(t.encode("é", false) == Ids{0xC3, 0xA9});
}

TEST_CASE("tokenizer: the post-processor acts only where asked") {
  Tokenizer t(test::byte_level(
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
      "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
      "special_tokens":{"<|end|>":{"id":"<|end|>","ids":[261],"tokens":["<|end|>"]}}})"));
  CHECK(t.encode("hello", true) == Ids{261, 259});
  CHECK(t.encode("hello", false) == Ids{259});
}

TEST_CASE("tokenizer: decodes") {
  Tokenizer t(test::byte_level());
  CHECK(t.decode(Ids{259, 261, 260}, true) == "hello w");
  CHECK(t.decode(Ids{259, 261, 260}, false) == "hello<|end|> w");
  CHECK(t.decode(Ids{0xC3, 'a', 0xC3, 0xA9}, true) == "\uFFFDaé");
  CHECK(t.decode(Ids{259, -1, 265, 99999, 'o'}, true) == "helloo");
}

TEST_CASE("tokenizer: an id's bytes") {
  Tokenizer t(test::byte_level());
  for (int b = 0; b < 256; ++b) {
    CHECK(t.bytes(b) == std::string(1, static_cast<char>(b)));
  }
  CHECK(t.bytes(260) == " w");
  CHECK(t.bytes(261) == "<|end|>");
  CHECK(t.bytes(265).empty());
  CHECK(t.bytes(-1).empty());
  CHECK(t.bytes(1 << 30).empty());

  Tokenizer s(test::sentence_piece(test::llama2_decoder));
  CHECK(s.bytes(263) == " hi");
  CHECK(s.bytes(264) == "  ");
  CHECK(s.bytes(3 + 0xE4) == "\xE4");
  CHECK(s.bytes(1) == "<s>");
}

TEST_CASE("tokenizer: ids, special tokens, size") {
  Tokenizer t(test::byte_level());
  CHECK(t.id("hello") == 259);
  CHECK(t.id("<|far|>") == 263);
  CHECK(t.id("nothing") == -1);
  CHECK(t.size() == 264);
  CHECK(t.is_special(261));
  CHECK_FALSE(t.is_special(262));
  CHECK_FALSE(t.is_special(265));
  CHECK_FALSE(t.is_special(-1));
  CHECK_FALSE(t.is_special(264));
}

TEST_CASE("tokenizer: sentencepiece keeps the spaces but the one it put there") {
  Tokenizer t(test::sentence_piece(test::llama2_decoder));
  for (const char* text : {"hi", " hi", "hi  hi", "é 你 🙂", "  "}) {
    CHECK(t.decode(t.encode(text, false), true) == text);
  }
}

TEST_CASE("tokenizer: errors say what is wrong") {
  auto kind = [](auto&& call) {
    try {
      call();
    } catch (const Error& e) {
      CHECK(std::string(e.what()).starts_with("[tokenizer] "));
      return e.kind;
    }
    return Kind::busy;
  };
  CHECK(kind([] { Tokenizer("{}"); }) == Kind::invalid);
  CHECK(kind([] { Tokenizer("not json"); }) == Kind::invalid);
  Tokenizer t(test::byte_level());
  CHECK(kind([&] { t.encode("\xFF", false); }) == Kind::invalid);
}
