#include "text/spm_model.h"

#include "base/error.h"
#include "base/json.h"
#include "text/utf8.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <optional>

namespace parallm {

namespace {

/** One field of a message: a number, or the bytes of a string or message. */
struct Field {
  uint64_t number = 0;
  uint64_t value = 0;
  std::string_view bytes;
};

/** Walks the fields of one message (protobuf's "encoding" page); never reads
 * beyond its bytes. */
class Message {
 public:
  Message(std::string_view bytes, const std::string& file) : rest_(bytes), file_(file) {}

  std::optional<Field> next() {
    if (rest_.empty()) {
      return {};
    }
    const uint64_t key = varint();
    Field field{.number = key >> 3};
    switch (key & 7) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.bytes = take(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        field.bytes = take(4);
        break;
      default:
        broken();
    }
    return field;
  }

 private:
  [[noreturn]] void broken() const {
    fail(Kind::invalid, "[tokenizer] {} is no SentencePiece model, or is cut off", file_);
  }

  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= uint64_t(byte & 0x7F) << shift;
      if (byte < 0x80) {
        return value;
      }
    }
    broken();
  }

  std::string_view take(uint64_t size) {
    if (size > rest_.size()) {
      broken();
    }
    std::string_view out = rest_.substr(0, size);
    rest_.remove_prefix(size);
    return out;
  }

  std::string_view rest_;
  const std::string& file_;
};

float float_of(std::string_view bytes) {
  uint32_t bits = 0;
  if (bytes.size() == sizeof(bits)) {
    std::memcpy(&bits, bytes.data(), sizeof(bits));
  }
  return std::bit_cast<float>(bits);
}

void read_piece(std::string_view bytes, const std::string& file, SpmModel& out) {
  std::string text;
  float score = 0;
  int32_t type = piece_normal;
  Message message(bytes, file);
  while (auto field = message.next()) {
    if (field->number == 1) {
      text = field->bytes;
    } else if (field->number == 2) {
      score = float_of(field->bytes);
    } else if (field->number == 3) {
      type = static_cast<int32_t>(field->value);
    }
  }
  if (!std::isfinite(score) || valid_utf8(text) != text) {
    fail(Kind::invalid, "[tokenizer] {}: piece {} has no valid text or score", file, out.pieces.size());
  }
  out.pieces.push_back(std::move(text));
  out.scores.push_back(score);
  out.types.push_back(type);
}

void read_trainer(std::string_view bytes, const std::string& file, SpmModel& out) {
  Message message(bytes, file);
  uint64_t kind = static_cast<uint64_t>(SpmKind::unigram);
  while (auto field = message.next()) {
    if (field->number == 3) {
      kind = field->value;
    } else if (field->number == 24 && field->value != 0) {
      fail(Kind::invalid, "[tokenizer] {}: treat_whitespace_as_suffix is not supported", file);
    } else if (field->number == 35) {
      out.byte_fallback = field->value != 0;
    } else if (field->number == 41) {
      out.bos = static_cast<int32_t>(field->value);
    } else if (field->number == 42) {
      out.eos = static_cast<int32_t>(field->value);
    }
  }
  if (kind != static_cast<uint64_t>(SpmKind::unigram) && kind != static_cast<uint64_t>(SpmKind::bpe)) {
    fail(Kind::invalid, "[tokenizer] {}: model_type must be unigram (1) or bpe (2); got {}", file, kind);
  }
  out.kind = static_cast<SpmKind>(kind);
}

void read_normalizer(std::string_view bytes, const std::string& file, SpmModel& out) {
  Message message(bytes, file);
  while (auto field = message.next()) {
    if (field->number == 2) {
      out.charsmap = field->bytes;
    } else if (field->number == 3) {
      out.add_dummy_prefix = field->value != 0;
    } else if (field->number == 4) {
      out.remove_extra_whitespaces = field->value != 0;
    } else if (field->number == 5) {
      out.escape_whitespaces = field->value != 0;
    }
  }
}

} // namespace

SpmModel read_spm(std::string_view bytes, const std::string& file) {
  SpmModel out;
  Message message(bytes, file);
  while (auto field = message.next()) {
    if (field->number == 1) {
      read_piece(field->bytes, file, out);
    } else if (field->number == 2) {
      read_trainer(field->bytes, file, out);
    } else if (field->number == 3) {
      read_normalizer(field->bytes, file, out);
    }
  }
  if (out.pieces.empty()) {
    fail(Kind::invalid, "[tokenizer] {} is no SentencePiece model: it has no pieces", file);
  }
  return out;
}

} // namespace parallm
