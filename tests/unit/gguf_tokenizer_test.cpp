#include "text/gguf_tokenizer.h"

#include "base/error.h"
#include "text/tokenizer.h"
#include "unit/tokenizers.h"

#include <doctest/doctest.h>

using namespace parallm;
using Ids = std::vector<int32_t>;

namespace {

GgufVocabulary vocabulary(const std::string& pre) {
  GgufVocabulary v{.model = "gpt2", .pre = pre};
  for (int b = 0; b < 256; ++b) {
    v.tokens.push_back(test::byte_char(b));
  }
  for (const char* token : {"12", "123", "1234", "hi", "<|end|>", "<tool>"}) {
    v.tokens.push_back(token);
  }
  v.types.assign(v.tokens.size(), 1);
  v.types[260] = 3;
  v.types[261] = 4;
  v.merges = {"1 2", "12 3", "123 4", "h i"};
  return v;
}

Ids encode(const std::string& pre, const char* text) {
  return Tokenizer(gguf_tokenizer(vocabulary(pre))).encode(text, false);
}

} // namespace

TEST_CASE("gguf_tokenizer: each kind splits numbers its own way") {
  CHECK(encode("smollm", "1234") == Ids{'1', '2', '3', '4'});
  CHECK(encode("qwen2", "1234") == Ids{'1', '2', '3', '4'});
  CHECK(encode("llama-bpe", "1234") == Ids{257, '4'});
  CHECK(encode("gpt-2", "1234") == Ids{258});
  CHECK(encode("default", "1234") == Ids{257, '4'});
}

TEST_CASE("gguf_tokenizer: every kind encodes and decodes any text") {
  for (const char* pre : {"smollm",  "starcoder", "refact",      "command-r", "codeshell",        "exaone",
                          "gpt-2",   "olmo",      "mpt",         "llama-bpe", "llama3",           "llama-v3",
                          "falcon3", "dbrx",      "smaug-bpe",   "qwen2",     "deepseek-r1-qwen", "stablelm2",
                          "tekken",  "gpt-4o",    "deepseek-v3", "default"}) {
    CAPTURE(pre);
    Tokenizer t(gguf_tokenizer(vocabulary(pre)));
    const char* text = "Hi, I'LL say:  \"你好\" 12345\r\n\n\tx<tool> é🙂 [a]_{b}";
    CHECK(t.decode(t.encode(text, true), false) == text);
  }
}

TEST_CASE("gguf_tokenizer: control and user-defined tokens are added tokens") {
  Tokenizer t(gguf_tokenizer(vocabulary("smollm")));
  CHECK(t.encode("hi<|end|>hi<tool>", false) == Ids{259, 260, 259, 261});
  CHECK(t.is_special(260));
  CHECK_FALSE(t.is_special(261));
  CHECK(t.decode(Ids{259, 260, 261}, true) == "hi<tool>");
}

TEST_CASE("gguf_tokenizer: BOS where the file asks for it") {
  GgufVocabulary v = vocabulary("llama-bpe");
  v.bos = 260;
  v.add_bos = true;
  Tokenizer t(gguf_tokenizer(v));
  CHECK(t.encode("hi", true) == Ids{260, 259});
  CHECK(t.encode("hi", false) == Ids{259});
  CHECK(t.encode("<|end|>hi", true) == Ids{260, 259});
  v.add_bos.reset();
  CHECK(Tokenizer(gguf_tokenizer(v)).encode("hi", true) == Ids{260, 259}); // what the kind does by itself
  v.pre = "qwen2";
  CHECK(Tokenizer(gguf_tokenizer(v)).encode("hi", true) == Ids{259});
  v.eos = 261;
  v.add_eos = true;
  CHECK(Tokenizer(gguf_tokenizer(v)).encode("hi", true) == Ids{259, 261});
  v.add_bos = true;
  v.bos = 9999;
  CHECK_THROWS_AS(gguf_tokenizer(v), Error);
}

TEST_CASE("gguf_tokenizer: what it can't open it names") {
  auto text = [](const GgufVocabulary& v) -> std::string {
    try {
      gguf_tokenizer(v);
    } catch (const Error& e) {
      CHECK(e.kind == Kind::invalid);
      return e.what();
    }
    return "none";
  };
  GgufVocabulary v = vocabulary("nothing");
  CHECK(text(v).find("smollm, ") != std::string::npos);
  CHECK(text(v).find("got \"nothing\"") != std::string::npos);
  v = vocabulary("qwen2");
  v.model = "bert";
  CHECK(text(v).find("got \"bert\"") != std::string::npos);
  v = vocabulary("qwen2");
  v.merges.push_back("nospace");
  CHECK(text(v).find("nospace") != std::string::npos);
  v = vocabulary("qwen2");
  v.tokens[257] = "12";
  CHECK(text(v).find("twice") != std::string::npos);
  v = vocabulary("qwen2");
  v.model = "llama";
  CHECK(text(v).find("a score and a type for each of its 262 tokens; got 0 and 262") != std::string::npos);
  v = vocabulary("qwen2");
  v.merges.clear();
  CHECK(text(v).find("needs tokenizer.ggml.merges") != std::string::npos);
  v = vocabulary("qwen2");
  v.types.pop_back();
  CHECK(text(v).find("262 tokens, but 261") != std::string::npos);
}
