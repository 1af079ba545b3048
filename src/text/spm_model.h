// A SentencePiece model file ("tokenizer.model"): the fields of
// sentencepiece_model.proto that encoding needs, read from the protobuf's wire
// form. Free functions, any thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace parallm {

/** sentencepiece_model.proto's piece types; GGUF's token types are the same. */
enum PieceType : int32_t {
  piece_normal = 1,
  piece_unknown = 2,
  piece_control = 3,
  piece_user_defined = 4,
  piece_unused = 5,
  piece_byte = 6,
};

enum class SpmKind { unigram = 1, bpe = 2 };

/** Fields that a file leaves out have the proto's defaults. */
struct SpmModel {
  SpmKind kind = SpmKind::unigram;
  std::vector<std::string> pieces; // by id; a space is written as U+2581
  std::vector<float> scores;
  std::vector<int32_t> types; // PieceType
  bool byte_fallback = false;
  int32_t bos = 1;
  int32_t eos = 2;
  std::string charsmap; // the normalizer's map, in the library's own form
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

/** Errors: invalid, for what is no such file or asks for what is not supported;
 * `file` names it. */
SpmModel read_spm(std::string_view bytes, const std::string& file);

} // namespace parallm
