// Small tokenizers for the tests of text/, written out as tokenizer.json texts:
// one of each shape that models use.
#pragma once

#include <string>

namespace parallm::test {

/** GPT-2's byte map: how a byte-level vocabulary writes a byte. */
inline std::string byte_char(int byte) {
  auto printable = [](int b) { return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE; };
  int code = byte;
  if (!printable(byte)) {
    code = 0x100;
    for (int b = 0; b < byte; ++b) {
      code += !printable(b);
    }
  }
  if (code < 0x80) {
    return {static_cast<char>(code)};
  }
  return {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 63))};
}

inline std::string quote(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
  }
  return out + "\"";
}

inline std::string added(int id, const char* content, bool special) {
  return "{\"id\":" + std::to_string(id) + ",\"content\":\"" + content +
      "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
      "\"normalized\":false,\"special\":" +
      (special ? "true}" : "false}");
}

/** Ids 0-255 the bytes, 256 "he", 257 "ll", 258 "hell", 259 "hello", 260 " w",
 * then the special <|end|> 261, the plain <tool> 262 and <|far|>
 * 270. */
inline std::string byte_level(const std::string& post_processor = "null") {
  std::string vocab;
  for (int b = 0; b < 256; ++b) {
    vocab += quote(byte_char(b)) + ":" + std::to_string(b) + ",";
  }
  vocab += R"("he":256,"ll":257,"hell":258,"hello":259,"Ġw":260)";
  return R"({"version":"1.0","truncation":{"direction":"Right","max_length":3,"strategy":"LongestFirst","stride":0},
    "padding":{"strategy":{"Fixed":32},"direction":"Left","pad_to_multiple_of":null,"pad_id":0,"pad_type_id":0,"pad_token":"!"},
    "added_tokens":[)" +
      added(261, "<|end|>", true) + "," + added(262, "<tool>", false) + "," + added(263, "<|far|>", true) +
      R"(],"normalizer":null,
    "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
    "post_processor":)" +
      post_processor + R"(,
    "decoder":{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true},
    "model":{"type":"BPE","dropout":null,"unk_token":null,"continuing_subword_prefix":null,"end_of_word_suffix":null,
    "fuse_unk":false,"byte_fallback":false,"ignore_merges":false,"vocab":{)" +
      vocab + R"(},"merges":[["h","e"],["l","l"],["he","ll"],["hell","o"],["Ġ","w"]]}})";
}

/** Ids 0 <unk>, 1 <s>, 2 </s>, 3-258 the bytes <0x00>..., 259 "▁", 260 "h", 261
 * "i", 262 "▁h", 263 "▁hi", 264 "▁▁", 265 "é". `decoder`: the JSON of one. */
inline std::string sentence_piece(const std::string& decoder) {
  std::string vocab = R"("<unk>":0,"<s>":1,"</s>":2,)";
  const char* hex = "0123456789ABCDEF";
  for (int b = 0; b < 256; ++b) {
    vocab += std::string("\"<0x") + hex[b / 16] + hex[b % 16] + ">\":" + std::to_string(b + 3) + ",";
  }
  vocab += R"("▁":259,"h":260,"i":261,"▁h":262,"▁hi":263,"▁▁":264,"é":265)";
  return R"({"version":"1.0","truncation":null,"padding":null,"added_tokens":[)" + added(0, "<unk>", true) + "," +
      added(1, "<s>", true) + "," + added(2, "</s>", true) +
      R"(],"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
    {"type":"Replace","pattern":{"String":" "},"content":"▁"}]},"pre_tokenizer":null,"post_processor":null,"decoder":)" +
      decoder + R"(,
    "model":{"type":"BPE","dropout":null,"unk_token":"<unk>","continuing_subword_prefix":null,"end_of_word_suffix":null,
    "fuse_unk":true,"byte_fallback":true,"ignore_merges":false,"vocab":{)" +
      vocab + R"(},"merges":[["▁","h"],["▁h","i"],["▁","▁"]]}})";
}

inline const char* llama2_decoder =
    R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
    {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]})";
inline const char* gemma_decoder =
    R"({"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},
    {"type":"ByteFallback"},{"type":"Fuse"}]})";
inline const char* metaspace_decoder =
    R"({"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true})";
/** One whose shape is not known id by id. */
inline const char* opaque_decoder = R"({"type":"WordPiece","prefix":"##","cleanup":true})";

} // namespace parallm::test
