// A GGUF file (ggml's docs/gguf.md, versions 2 and 3, little endian) as it lies on the disk: typed metadata, and each
// tensor's name, kind, shape and place in a mapped file. The header is walked within the file's bounds before anything
// else sees it, so that a damaged file is an error with its name. A model split into parts
// ("<name>-00001-of-00003.gguf") is opened by any one of them. Plain data; any thread.
#pragma once

#include "base/mapped_file.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

namespace parallm {

struct GgufType; // gguf_types.h

/** A metadata value; integers of every width are int64_t, lists of truth values are lists of 0 and 1. */
using GgufValue = std::
    variant<bool, int64_t, double, std::string, std::vector<int64_t>, std::vector<double>, std::vector<std::string>>;

/** The metadata by key. Getters check the type; errors name the key. */
class GgufMetadata {
 public:
  bool has(const std::string& key) const {
    return values_.contains(key);
  }
  bool set(const std::string& key, GgufValue value) { // false: it was there
    return values_.emplace(key, std::move(value)).second;
  }

  const GgufValue* find(const std::string& key) const { // null where absent
    auto found = values_.find(key);
    return found == values_.end() ? nullptr : &found->second;
  }

  // Without a fallback an absent key is an error. A list of one number is a number.
  std::string text(const std::string& key) const;
  std::string text(const std::string& key, std::string fallback) const;
  bool boolean(const std::string& key, bool fallback) const;
  int integer(const std::string& key) const; // 32-bit
  int integer(const std::string& key, int fallback) const;
  double number(const std::string& key) const;
  /** Empty where absent; a single value is a list of one. */
  std::vector<int64_t> integers(const std::string& key) const;
  std::vector<double> numbers(const std::string& key) const;
  std::vector<std::string> texts(const std::string& key) const;
  const std::map<std::string, GgufValue>& all() const {
    return values_;
  }

 private:
  [[noreturn]] static void wrong(const std::string& key, const char* wanted);
  const GgufValue& at(const std::string& key) const;

  std::map<std::string, GgufValue> values_;
};

struct GgufTensor {
  std::string name;
  const GgufType* type = nullptr;
  std::vector<int> shape; // the slowest axis first, as MLX has it
  std::shared_ptr<const MappedFile> file;
  size_t offset = 0; // of its first byte in the file
  size_t bytes = 0;
};

struct GgufContents {
  GgufMetadata metadata;
  std::vector<GgufTensor> tensors; // in the file's order
};

/** Errors: invalid, with the file's name: no GGUF, cut off, damaged, a part missing, a tensor kind that can't be read.
 */
GgufContents open_gguf_contents(const std::string& path);

} // namespace parallm
