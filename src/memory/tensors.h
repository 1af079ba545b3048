// The tensors of documents, in a folder of this machine:
//
//   <folder>/<first 2 digits of uid>/<uid>/<fingerprint>-<sha256>.safetensors
//
// <fingerprint> being the first 16 hex digits of the fingerprint's SHA-256 and <sha256> that of the file's content. A
// file comes into being whole, by a rename, after its bytes have reached the disk, and is never changed; its name says
// what must be in it. So servers may share the folder, and any tool that reads safetensors reads the files.
// Thread-safe; also between processes.
#pragma once

#include "base/mapped_file.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace parallm {

/** Bytes in pieces that follow one another, so that nobody needs to join them in memory. */
using Pieces = std::vector<std::string_view>;

struct FoundTensors {
  enum class State { present, absent, altered };
  State state = State::absent;
  std::shared_ptr<const MappedFile> file; // where present; stays good when the document is erased
};

class Tensors {
 public:
  /** Makes the folder. Errors: invalid where it can't. */
  explicit Tensors(std::filesystem::path folder);

  /** Beside those of the last other fingerprint; older ones go. Errors: unavailable (the disk is full). */
  void put(const std::string& uid, const std::string& fingerprint, const Pieces& pieces);

  /** Reads the whole file, to check its hash. What is altered is logged. */
  FoundTensors find(const std::string& uid, const std::string& fingerprint) const;

  void erase(const std::string& uid);

  /** Removes what is older than an hour and of no uid that `known` knows (asked for many at once): left by a process
   * that was killed, or by a document that another machine erased. */
  void sweep(const std::function<std::vector<bool>(const std::vector<std::string>&)>& known);

  uint64_t bytes() const;

 private:
  std::filesystem::path folder_;
};

} // namespace parallm
