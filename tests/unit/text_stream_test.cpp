#include "text/text_stream.h"

#include "base/error.h"
#include "text/ffi.h"
#include "unit/tokenizers.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>

using namespace parallm;
using Ids = std::vector<int32_t>;

namespace {

std::string all(TextStream& stream, const Ids& ids) {
  std::string text;
  for (int32_t id : ids) {
    text += stream.push(id);
  }
  return text + stream.flush();
}

/** The library's own decode, for what Tokenizer::decode must equal. */
std::string library_decode(const Tokenizer& t, const Ids& ids, bool skip) {
  std::vector<uint32_t> raw(ids.begin(), ids.end());
  text_bytes out, error;
  expect(text_tokenizer_decode(t.handle().ffi.get(), raw.data(), raw.size(), skip, &out, &error), error, "test");
  return take(out);
}

bool is_utf8(const std::string& text) {
  Utf8 utf8;
  std::string out;
  utf8.push(text, out);
  utf8.flush(out);
  return out == text;
}

/** Ids as they come from a bad model: bytes of real characters, stray bytes,
 * ids that no tokenizer has. */
Ids random_ids(std::mt19937& random, int size, int first_byte) {
  static const std::string text = "aé你🙂 \n";
  Ids ids;
  for (int n = random() % 24; n > 0; --n) {
    switch (random() % 4) {
      case 0:
        ids.push_back(first_byte + text[random() % text.size()] % 256);
        ids.back() += ids.back() < first_byte ? 256 : 0;
        break;
      case 1:
        for (unsigned char c : text) {
          ids.push_back(first_byte + c);
        }
        break;
      default:
        ids.push_back(static_cast<int32_t>(random() % (size + 3)));
    }
  }
  return ids;
}

} // namespace

TEST_CASE("text_stream: pushes and flush make what decoding all ids makes") {
  std::mt19937 random(1);
  auto holds = [&](const std::string& json, int first_byte) {
    Tokenizer t(json);
    for (int round = 0; round < 2000; ++round) {
      Ids ids = random_ids(random, t.size(), first_byte);
      for (bool skip : {true, false}) {
        TextStream stream(t, {}, skip);
        std::string text;
        for (int32_t id : ids) {
          std::string more = stream.push(id);
          REQUIRE(is_utf8(more));
          text += more;
        }
        text += stream.flush();
        REQUIRE(text == t.decode(ids, skip));
        REQUIRE(is_utf8(text));
      }
    }
  };
  holds(test::byte_level(), 0);
  holds(test::sentence_piece(test::llama2_decoder), 3);
  holds(test::sentence_piece(test::gemma_decoder), 3);
  holds(test::sentence_piece(test::metaspace_decoder), 3);
  holds(test::sentence_piece(test::opaque_decoder), 3);
}

TEST_CASE("text_stream: equals the library's own decode") {
  std::mt19937 random(2);
  Tokenizer bytes(test::byte_level());
  for (int round = 0; round < 2000; ++round) {
    Ids ids = random_ids(random, bytes.size(), 0);
    for (bool skip : {true, false}) {
      TextStream stream(bytes, {}, skip);
      REQUIRE(all(stream, ids) == library_decode(bytes, ids, skip));
    }
  }
  // Of a run of bytes that is not all UTF-8 the library keeps nothing; so here
  // only whole characters and words.
  for (const char* decoder : {test::llama2_decoder, test::gemma_decoder, test::metaspace_decoder}) {
    Tokenizer t(test::sentence_piece(decoder));
    bool has_bytes = decoder != test::metaspace_decoder;
    for (int round = 0; round < 2000; ++round) {
      Ids ids;
      for (int n = random() % 12; n > 0; --n) {
        if (has_bytes && random() % 2) {
          for (unsigned char c : std::string(random() % 2 ? "🙂" : " ")) {
            ids.push_back(3 + c);
          }
        } else {
          ids.push_back(random() % 2 ? 259 + random() % 7 : random() % 3);
        }
      }
      for (bool skip : {true, false}) {
        TextStream stream(t, {}, skip);
        REQUIRE(all(stream, ids) == library_decode(t, ids, skip));
      }
    }
  }
}

TEST_CASE("text_stream: a character comes out when it is whole") {
  Tokenizer t(test::byte_level());
  TextStream s(t, {});
  CHECK(s.push(0xF0) == "");
  CHECK(s.push(0x9F) == "");
  CHECK(s.push(0x99) == "");
  CHECK(s.push(0x82) == "🙂");
  CHECK(s.push(0xE4) == "");
  CHECK(s.push('a') == "\uFFFDa");
  CHECK(s.push(0xE4) == "");
  CHECK(s.push(0xBD) == "");
  CHECK(s.flush() == "\uFFFD");
  CHECK(s.flush() == "");
}

TEST_CASE("text_stream: wrong bytes as Python's errors='replace' has them") {
  Tokenizer t(test::byte_level());
  // bytes(...).decode('utf-8', 'replace') in Python 3.11
  struct Case {
    Ids bytes;
    const char* text;
  };
  for (const Case& c : std::initializer_list<Case>{
           {{0xC0, 0x80}, "\uFFFD\uFFFD"},
           {{0xED, 0xA0, 0x80}, "\uFFFD\uFFFD\uFFFD"},
           {{0xF4, 0x90, 0x80, 0x80}, "\uFFFD\uFFFD\uFFFD\uFFFD"},
           {{0xF0, 0x9F, 0x99, 'x'}, "\uFFFDx"},
           {{0xE4, 0xE4, 0xBD, 0xA0}, "\uFFFD你"},
           {{0xFF, 'a'}, "\uFFFDa"}}) {
    TextStream s(t, {});
    CHECK(all(s, c.bytes) == c.text);
  }
}

TEST_CASE("text_stream: byte fallback streams, and keeps good characters") {
  Tokenizer t(test::sentence_piece(test::llama2_decoder));
  TextStream s(t, {});
  std::string text;
  for (int c : {0xE4, 0xBD, 0xA0}) {
    text += s.push(3 + c);
  }
  CHECK(text == "你");
  CHECK(s.push(3 + 0xE5) == "");
  CHECK(s.push(263) == "\uFFFD hi");
}

TEST_CASE("text_stream: the leading space") {
  Tokenizer llama(test::sentence_piece(test::llama2_decoder));
  TextStream a(llama, {});
  CHECK(a.push(1) == "");
  CHECK(a.push(263) == "hi");
  CHECK(a.push(263) == " hi");
  Tokenizer gemma(test::sentence_piece(test::gemma_decoder));
  TextStream b(gemma, {});
  CHECK(b.push(263) == " hi");
}

TEST_CASE("text_stream: stop strings across token borders") {
  Tokenizer t(test::byte_level());
  TextStream s(t, {"low"});
  CHECK(s.push(259) == "hel"); // "hello": "lo" may be a stop's beginning
  CHECK(s.push('w') == "");
  CHECK(s.stopped());
  CHECK(s.stop() == "low");
  CHECK(s.push('x') == "");
  CHECK(s.flush() == "");

  TextStream kept(t, {"low"}, true, true);
  CHECK(all(kept, {259, 'w', 'x'}) == "hellow");
  CHECK(kept.stopped());

  TextStream not_there(t, {"low", "lox"});
  CHECK(all(not_there, {259, 260}) == "hello w");
  CHECK_FALSE(not_there.stopped());

  TextStream own_prefix(t, {"aab"});
  CHECK(all(own_prefix, {'a', 'a', 'a', 'b', 'c'}) == "a");
}

TEST_CASE("text_stream: no stop string in the text of the first min_tokens tokens") {
  Tokenizer t(test::byte_level());
  const Ids ids = {'a', 'b', 'c', 'a', 'b', 'c', 'a', 'b', 'c'};
  const auto until = [&](int min_tokens) {
    TextStream s(t, {"bc"}, true, false, min_tokens);
    return all(s, ids);
  };
  CHECK(until(0) == "a");
  CHECK(until(1) == "a");
  // "b" is among the free text, so that "bc" does not end there.
  CHECK(until(2) == "abca");
  CHECK(until(3) == "abca");
  CHECK(until(9) == "abcabcabc");
}

TEST_CASE("text_stream: of two stop strings the one that begins first") {
  Tokenizer t(test::byte_level());
  TextStream both(t, {"bc", "abcd"});
  CHECK(all(both, {'x', 'a', 'b', 'c', 'd', 'e'}) == "x");
  CHECK(both.stop() == "abcd");
  TextStream other(t, {"bc", "abcd"});
  CHECK(all(other, {'x', 'a', 'b', 'c', 'e', 'f'}) == "xa");
  CHECK(other.stop() == "bc");
  TextStream ended(t, {"bc", "abcd"});
  CHECK(all(ended, {'x', 'a', 'b', 'c'}) == "xa");
  CHECK(ended.stopped());
}

TEST_CASE("text_stream: stops equal a search in the whole text") {
  std::mt19937 random(3);
  Tokenizer t(test::byte_level());
  auto word = [&](int least, int most) {
    std::string text;
    for (int n = least + random() % (most - least + 1); n > 0; --n) {
      text += std::array{"a", "b", "é"}[random() % 3];
    }
    return text;
  };
  int found = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text = word(0, 14);
    std::vector<std::string> stops;
    for (int n = random() % 4; n > 0; --n) {
      stops.push_back(word(1, 4));
    }
    bool keep = random() % 2;
    size_t at = std::string::npos, size = 0;
    for (const std::string& stop : stops) {
      size_t place = text.find(stop);
      if (place < at || (place == at && stop.size() < size)) {
        at = place;
        size = stop.size();
      }
    }
    bool any = at != std::string::npos;
    found += any;
    TextStream s(t, stops, true, keep);
    Ids ids;
    for (unsigned char c : text) {
      ids.push_back(c);
    }
    CAPTURE(text);
    REQUIRE(all(s, ids) == (any ? text.substr(0, at + keep * size) : text));
    REQUIRE(s.stopped() == any);
  }
  CHECK(found > 1000);
}

TEST_CASE("text_stream: an empty stop string is refused") {
  Tokenizer t(test::byte_level());
  CHECK_THROWS_AS(TextStream(t, {"a", ""}), Error);
}
