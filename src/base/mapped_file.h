// A file's bytes in memory without a copy: a read-only mapping, shared by whoever still points into it (tensors keep it
// alive through a shared_ptr). Pages are read from the disk when they are touched and belong to the system's page
// cache, so `drop` gives back what a reader has finished with. Immutable; any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace parallm {

class MappedFile {
 public:
  /** Errors: invalid, naming the path and the system's reason; a folder or an empty file is one too. */
  explicit MappedFile(const std::string& path);
  /** Null where there is no such file, or it is empty. Errors: invalid, where what is there can't be mapped. */
  static std::shared_ptr<const MappedFile> find(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::byte* data() const {
    return data_;
  }
  size_t size() const {
    return size_;
  }
  std::string_view text(size_t offset, size_t length) const {
    return {reinterpret_cast<const char*>(data_) + offset, length};
  }
  const std::string& path() const {
    return path_;
  }

  /** These bytes will be read soon: the system may fetch them ahead. */
  void expect(size_t offset, size_t length) const;
  /** These bytes won't be read again soon: their whole pages leave this process' memory. Reading them again is right
   * and slow. */
  void drop(size_t offset, size_t length) const;

 private:
  MappedFile() = default;
  bool map();

  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

} // namespace parallm
