#include "base/mapped_file.h"

#include "base/error.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace parallm {

namespace {

/** Closes itself, so that an error on the way leaks nothing. The mapping outlives it. */
struct Descriptor {
  explicit Descriptor(int number) : number(number) {}
  ~Descriptor() {
    if (number >= 0) {
      ::close(number);
    }
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int number;
};

size_t page_size() {
  static const size_t size = ::sysconf(_SC_PAGESIZE);
  return size;
}

} // namespace

MappedFile::MappedFile(const std::string& path) : path_(path) {
  if (!map()) {
    fail(Kind::invalid, "[open_file] cannot open {}: {}", path, std::strerror(errno));
  }
  if (size_ == 0) {
    fail(Kind::invalid, "[open_file] {} is empty (an incomplete download?)", path);
  }
}

std::shared_ptr<const MappedFile> MappedFile::find(const std::string& path) {
  std::shared_ptr<MappedFile> file(new MappedFile);
  file->path_ = path;
  return file->map() && file->size_ > 0 ? file : nullptr;
}

bool MappedFile::map() {
  Descriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat about {};
  if (file.number < 0 || ::fstat(file.number, &about) != 0) {
    return false;
  }
  if (!S_ISREG(about.st_mode)) {
    fail(Kind::invalid, "[open_file] {} is no plain file", path_);
  }
  if (about.st_size == 0) {
    return true;
  }
  void* at = ::mmap(nullptr, about.st_size, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (at == MAP_FAILED) {
    fail(Kind::invalid, "[open_file] cannot map {}: {}", path_, std::strerror(errno));
  }
  size_ = about.st_size;
  data_ = static_cast<const std::byte*>(at);
  return true;
}

MappedFile::~MappedFile() {
  if (data_ == nullptr) {
    return;
  }
  ::munmap(const_cast<std::byte*>(data_), size_);
}

// Advice only: its failure changes nothing that a caller could act on.
void MappedFile::expect(size_t offset, size_t length) const {
  size_t first = offset / page_size() * page_size();
  ::madvise(const_cast<std::byte*>(data_) + first, std::min(offset + length, size_) - first, MADV_WILLNEED);
}

void MappedFile::drop(size_t offset, size_t length) const {
  // A page that the range holds in part may hold a neighbour's bytes too.
  size_t first = (offset + page_size() - 1) / page_size() * page_size();
  size_t end = offset + length == size_ ? size_ : (offset + length) / page_size() * page_size();
  if (first < end) {
    ::madvise(const_cast<std::byte*>(data_) + first, end - first, MADV_DONTNEED);
  }
}

} // namespace parallm
