#include "base/error.h"
#include "models/gguf.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>

namespace parallm {

namespace {

// gguf.md, "gguf_metadata_value_type": sizes of the fixed ones by number; 8 is
// a string, 9 an array.
constexpr uint32_t kString = 8;
constexpr uint32_t kArray = 9;
constexpr uint64_t kValueBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

/** gguf.md, "ggml_type": the tensor kinds that MLX opens, with their block's
 * weights and bytes. */
constexpr struct {
  uint32_t type;
  uint64_t weights;
  uint64_t bytes;
} kinds[] = {
    {0, 1, 4}, // F32
    {1, 1, 2}, // F16
    {2, 32, 18}, // Q4_0
    {3, 32, 20}, // Q4_1
    {8, 32, 34}, // Q8_0
    {10, 256, 84}, // Q2_K
    {12, 256, 144}, // Q4_K
    {14, 256, 210}, // Q6_K
};

class Walk {
 public:
  explicit Walk(const std::string& path)
      : path_(path), file_(path, std::ios::binary), left_(std::filesystem::file_size(path)) {
    if (!file_) {
      fail(Kind::invalid, "[open_checkpoint] cannot open {}", path);
    }
  }

  void header() {
    char magic[4] = {};
    read(magic, sizeof(magic));
    if (std::string_view(magic, 4) != "GGUF") {
      broken("it doesn't begin with GGUF");
    }
    auto version = number<uint32_t>();
    if (version != 2 && version != 3) {
      broken(fmt::format("version must be 2 or 3; got {}", version));
    }
    auto tensors = number<uint64_t>();
    auto pairs = number<uint64_t>();
    for (uint64_t i = 0; i < pairs; ++i) {
      auto key = string();
      auto type = number<uint32_t>();
      value(type);
      if (key == "general.alignment") {
        alignment_ = last_;
      }
    }
    if (alignment_ == 0) {
      broken("general.alignment is 0");
    }
    for (uint64_t i = 0; i < tensors; ++i) {
      tensor();
    }
    uint64_t pad = (alignment_ - at_ % alignment_) % alignment_;
    if (end_ > 0 && (pad > left_ || end_ > left_ - pad)) {
      broken("its tensors go on past the end of the file");
    }
  }

 private:
  [[noreturn]] void broken(const std::string& what) {
    fail(
        Kind::invalid,
        "[open_checkpoint] {} is no GGUF file that can be read: {} (an "
        "incomplete download?)",
        path_,
        what);
  }

  void take(uint64_t bytes) {
    if (bytes > left_) {
      broken(fmt::format("it is cut off at byte {}", at_));
    }
    left_ -= bytes;
    at_ += bytes;
  }

  void read(char* out, uint64_t bytes) {
    take(bytes);
    file_.read(out, bytes);
  }

  void skip(uint64_t bytes) {
    take(bytes);
    file_.seekg(bytes, std::ios::cur);
  }

  template <typename T>
  T number() {
    T out{};
    read(reinterpret_cast<char*>(&out), sizeof(out));
    return out;
  }

  std::string string() {
    auto length = number<uint64_t>();
    if (length > left_) {
      broken(fmt::format("a string goes on past the end at byte {}", at_));
    }
    std::string out(length, '\0');
    read(out.data(), length);
    return out;
  }

  uint64_t value_bytes(uint32_t type) {
    if (type >= std::size(kValueBytes)) {
      broken(fmt::format("unknown value type {} at byte {}", type, at_));
    }
    return kValueBytes[type];
  }

  void value(uint32_t type) {
    if (type == kString) {
      skip(number<uint64_t>());
    } else if (type == kArray) {
      auto item = number<uint32_t>();
      auto count = number<uint64_t>();
      if (item == kArray) {
        broken("it holds a list of lists");
      }
      // MLX keeps the length in an int.
      if (count > uint64_t(std::numeric_limits<int>::max())) {
        broken(fmt::format("a list of {} values", count));
      }
      if (item == kString) {
        for (uint64_t i = 0; i < count; ++i) {
          skip(number<uint64_t>());
        }
      } else {
        skip(count * value_bytes(item));
      }
    } else if (auto bytes = value_bytes(type); bytes == 4) {
      last_ = number<uint32_t>();
    } else {
      skip(bytes);
    }
  }

  void tensor() {
    auto name = string();
    auto dims = number<uint32_t>();
    if (dims > 4) {
      broken(fmt::format("tensor {} has {} dimensions", name, dims));
    }
    uint64_t weights = 1;
    for (uint32_t i = 0; i < dims; ++i) {
      auto dim = number<uint64_t>();
      if (dim > uint64_t(std::numeric_limits<int>::max()) || (dim != 0 && weights > (uint64_t(1) << 48) / dim)) {
        broken(fmt::format("tensor {} is too large", name));
      }
      weights *= dim;
    }
    auto type = number<uint32_t>();
    auto offset = number<uint64_t>();
    auto* kind = std::find_if(std::begin(kinds), std::end(kinds), [&](auto& k) { return k.type == type; });
    if (kind == std::end(kinds)) {
      broken(fmt::format(
          "tensor {} has ggml type {}; F32, F16, Q4_0, Q4_1, Q8_0, Q2_K, Q4_K "
          "and Q6_K can be read",
          name,
          type));
    }
    if (weights % kind->weights != 0) {
      broken(fmt::format("tensor {} is no whole number of blocks", name));
    }
    auto bytes = weights / kind->weights * kind->bytes;
    if (offset > std::numeric_limits<uint64_t>::max() - bytes) {
      broken(fmt::format("tensor {} lies outside the file", name));
    }
    end_ = std::max(end_, offset + bytes);
  }

  const std::string& path_;
  std::ifstream file_;
  uint64_t left_; // bytes after at_
  uint64_t at_ = 0;
  uint64_t alignment_ = 32;
  uint64_t last_ = 0; // the last 4-byte value
  uint64_t end_ = 0; // of the tensors, from the data section's start
};

} // namespace

void check_gguf(const std::string& path) {
  Walk(path).header();
}

} // namespace parallm
