#include "text/text_folder.h"

#include "base/error.h"
#include "base/json.h"
#include "unit/tokenizers.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

using namespace parallm;
using Ids = std::vector<int32_t>;
namespace fs = std::filesystem;

namespace {

/** A model folder that is gone with the test. */
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "parallm-text-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    fs::remove_all(path_);
  }

  Folder& write(const std::string& name, const std::string& text) {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
    return *this;
  }
  TextFiles read() const {
    return read_text_folder(path_.string());
  }
  std::string error() const {
    try {
      Tokenizer t(read().tokenizer);
    } catch (const Error& e) {
      CHECK(e.kind == Kind::invalid);
      return e.what();
    }
    return "none";
  }

 private:
  fs::path path_;
};

std::string bos_processor(int id) {
  return R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<|end|>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
      "pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],
      "special_tokens":{"<|end|>":{"id":"<|end|>","ids":[)" +
      std::to_string(id) + R"(],"tokens":["<|end|>"]}}})";
}

} // namespace

TEST_CASE("text_folder: tokens that only tokenizer_config.json has are added, with their flags") {
  Folder folder;
  folder.write("tokenizer.json", test::byte_level()).write("tokenizer_config.json", R"({
    "added_tokens_decoder": {
      "264": {"content": "<think>", "special": false, "lstrip": false, "rstrip": true, "normalized": false},
      "265": {"content": "<|turn|>", "special": true, "lstrip": true, "rstrip": false, "normalized": false},
      "262": {"content": "<tool>", "special": true}},
    "eos_token": {"content": "<|turn|>"}, "bos_token": null, "unk_token": "<nowhere>", "pad_token": "hello"})");
  TextFiles files = folder.read();
  Tokenizer t(files.tokenizer);
  CHECK(t.encode("a<think>  b  <|turn|>c", false) == Ids{'a', 264, 'b', 265, 'c'});
  CHECK(t.encode("<tool>", false) == Ids{262});
  CHECK(t.is_special(262)); // its flag in tokenizer.json was another one
  CHECK_FALSE(t.is_special(264));
  CHECK(t.is_special(265));
  CHECK(t.is_special(259)); // named as pad_token
  CHECK(t.id("<nowhere>") == -1); // would be an id that the model lacks
  CHECK(t.size() == 266);
  CHECK(files.end_tokens == std::vector<std::string>{"<|turn|>"});
  CHECK(
      parse_json(files.special_tokens, "special") ==
      json::value({{"eos_token", "<|turn|>"}, {"unk_token", "<nowhere>"}, {"pad_token", "hello"}}));
}

TEST_CASE("text_folder: BOS once, whoever writes it") {
  Folder folder;
  folder.write("tokenizer.json", test::byte_level(bos_processor(261)));
  Tokenizer t(folder.read().tokenizer);
  CHECK(t.encode("a", true) == Ids{261, 'a'});
  CHECK(t.encode("<|end|>a", true) == Ids{261, 'a'});
  CHECK(t.encode("<|end|><|end|>a", true) == Ids{261, 261, 'a'}); // the second one is the text's own
  CHECK(t.encode("", true) == Ids{261});
  CHECK(t.encode("<|end|>", true) == Ids{261});
  CHECK(t.encode("<|end|>a", false) == Ids{261, 'a'});
}

TEST_CASE("text_folder: add_bos_token and add_eos_token act for tokenizers like Llama's") {
  const std::string json = test::sentence_piece(test::llama2_decoder);
  auto ids = [&](const std::string& config) {
    Folder folder;
    folder.write("tokenizer.json", json).write("tokenizer_config.json", config);
    return Tokenizer(folder.read().tokenizer).encode("hi", true);
  };
  const std::string names = R"("bos_token": "<s>", "eos_token": "</s>")";
  CHECK(ids("{" + names + R"(, "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": true})") == Ids{1, 263});
  CHECK(
      ids("{" + names + R"(, "tokenizer_class": "LlamaTokenizer", "add_bos_token": false, "add_eos_token": true})") ==
      Ids{263, 2});
  CHECK(ids("{" + names + R"(, "tokenizer_class": "LlamaTokenizer"})") == Ids{263}); // tokenizer.json's own word
  CHECK(ids("{" + names + R"(, "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": true})") == Ids{263});
}

TEST_CASE("text_folder: added_tokens.json of older repositories") {
  Folder folder;
  folder.write("vocab.json", R"({"a": 0, "b": 1, "c": 3, "ab": 4})").write("merges.txt", "#version: 0.2\na b\r\n\n");
  folder.write(
      "tokenizer_config.json", R"({"tokenizer_class": "GPT2Tokenizer", "additional_special_tokens": ["<x>"]})");
  folder.write("added_tokens.json", R"({"<x>": 5, "<y>": 6})");
  Tokenizer t(folder.read().tokenizer);
  CHECK(t.encode("ab<x>c<y>", true) == Ids{4, 5, 3, 6});
  CHECK(t.is_special(5));
  CHECK_FALSE(t.is_special(6));
}

TEST_CASE("text_folder: chat templates from each place") {
  auto templates = [](const Folder& folder) { return folder.read().chat_templates; };
  using Map = std::map<std::string, std::string>;
  const std::string list =
      R"({"chat_template": [{"name": "default", "template": "D"}, {"name": "tool_use", "template": "T"}]})";
  Folder folder;
  folder.write("tokenizer.json", test::byte_level());
  CHECK(templates(folder).empty());
  folder.write("processor_config.json", R"({"chat_template": "P"})");
  CHECK(templates(folder) == Map{{"default", "P"}});
  folder.write("tokenizer_config.json", list);
  CHECK(templates(folder) == Map{{"default", "D"}, {"tool_use", "T"}});
  folder.write("chat_template.json", R"({"chat_template": "J"})");
  CHECK(templates(folder) == Map{{"default", "J"}});
  folder.write("additional_chat_templates/rag.jinja", "R").write("chat_template.jinja", "F");
  CHECK(templates(folder) == Map{{"default", "F"}, {"rag", "R"}});

  Folder wrong;
  wrong.write("tokenizer.json", test::byte_level());
  wrong.write("tokenizer_config.json", R"({"chat_template": [{"name": "default"}]})");
  CHECK(wrong.error().find("tokenizer_config.json: a chat_template of a list") != std::string::npos);
  wrong.write("tokenizer_config.json", R"({"chat_template": 5})");
  CHECK(wrong.error().find("chat_template must be a string or a list") != std::string::npos);
}

TEST_CASE("text_folder: --chat-template is a file, a text or a name") {
  const std::map<std::string, std::string> own = {{"default", "D"}, {"tool_use", "T"}};
  const std::string path = (fs::temp_directory_path() / "parallm-template.jinja").string();
  std::ofstream(path) << "from a file";
  CHECK(wanted_chat_template(path, own) == "from a file");
  fs::remove(path);
  CHECK(wanted_chat_template("{{ messages }}", own) == "{{ messages }}");
  CHECK(wanted_chat_template("tool_use", own) == "T");
  auto error = [&](const std::string& wanted, const std::map<std::string, std::string>& from) -> std::string {
    try {
      wanted_chat_template(wanted, from);
    } catch (const Error& e) {
      return e.what();
    }
    return "none";
  };
  CHECK(error(path, own).find("(default, tool_use); got " + path) != std::string::npos);
  CHECK(error("nothing", {}).find("(it has none); got nothing") != std::string::npos);
}

TEST_CASE("text_folder: what it can't open it names") {
  Folder folder;
  CHECK(
      folder.error().find("has no tokenizer.json, no tokenizer.model, no tekken.json, no tiktoken.model") !=
      std::string::npos);
  folder.write("vocab.json", R"({"a": 0})").write("merges.txt", "");
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "OddTokenizer"})");
  CHECK(folder.error().find("got \"OddTokenizer\"") != std::string::npos);
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "GPT2TokenizerFast"})");
  CHECK(folder.error() == "none");
  folder.write("vocab.json", R"({"a": 0, "b": 0})");
  CHECK(folder.error().find("the id 0 twice") != std::string::npos);
  folder.write("vocab.json", R"({"a": 0})").write("merges.txt", "ab\n");
  CHECK(folder.error().find("merges.txt") != std::string::npos);
  folder.write("tokenizer.model", "not a protobuf");
  CHECK(folder.error().find("tokenizer.model is no SentencePiece model") != std::string::npos);
  folder.write("tokenizer_config.json", R"({"added_tokens_decoder": {"x": {"content": "y"}}})");
  CHECK(folder.error().find("added_tokens_decoder has an entry without an id") != std::string::npos);
  folder.write("tokenizer_config.json", "[]");
  CHECK(folder.error().find("tokenizer_config.json must hold a JSON object") != std::string::npos);
}

TEST_CASE("text_folder: a tiktoken.model that is none is an error with its line") {
  Folder folder;
  folder.write("tiktoken.model", "IQ== 0\nIg== 2\n");
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "OddTokenizer"})");
  CHECK(
      folder.error().find(
          "tokenizer_class to be one of TikTokenTokenizer, QWenTokenizer, HYTokenizer; got \"OddTokenizer\"") !=
      std::string::npos);
  folder.write("tokenizer_config.json", R"({"tokenizer_class": "TikTokenTokenizer"})");
  CHECK(folder.error().find("the line's number; got \"Ig== 2\"") != std::string::npos);
  for (const char* line : {"IQ==", " 0", "I?== 0", "IQ== x", "IQ== 0"}) { // the last: a second 0
    CAPTURE(std::string(line));
    folder.write("tiktoken.model", std::string(line) + "\nIQ== 0\n");
    CHECK(folder.error().find("a tiktoken file's line is") != std::string::npos);
  }
  folder.write("tiktoken.model", "\nIQ== 0\n");
  CHECK(folder.error() == "none");
}

TEST_CASE("text_folder: a tekken.json that is none is an error that says what is wrong") {
  const std::string vocab = R"("vocab": [{"rank": 0, "token_bytes": "IQ==", "token_str": "!"}])";
  const auto config = [](const char* counts) {
    return std::string(R"({"config": {"pattern": ".", )") + counts + "}, ";
  };
  const std::vector<std::pair<std::string, std::string>> cases{
      {"{}", "'config' is missing"},
      {R"({"config": {}})", "'vocab' is missing"},
      {R"({"config": {}, "vocab": []})", "'pattern' is missing"},
      {config(R"("default_num_special_tokens": 20)") + vocab + "}", "'default_vocab_size' is missing"},
      {config(R"("default_num_special_tokens": 20, "default_vocab_size": 22)") + vocab + "}", "no more than"},
      {config(R"("default_num_special_tokens": 3, "default_vocab_size": 4)") + vocab + "}", "more special tokens"},
      {config(R"("default_num_special_tokens": 20, "default_vocab_size": 21)") + R"("vocab": [{}]})",
       "no 'token_bytes'"},
      {config(R"("default_num_special_tokens": 20, "default_vocab_size": 21)") + vocab + "}", "none"}};
  for (const auto& [file, said] : cases) {
    Folder folder;
    folder.write("tekken.json", file);
    CAPTURE(folder.error());
    CHECK(folder.error().find(said) != std::string::npos);
  }
}
