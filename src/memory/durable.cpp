#include "memory/durable.h"

#include "base/error.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <random>

namespace parallm {

namespace fs = std::filesystem;

namespace {

/** Closes its file, and removes it where nothing has renamed it. */
struct Unfinished {
  int file;
  fs::path path;
  bool renamed = false;
  ~Unfinished() {
    ::close(file);
    if (!renamed) {
      ::unlink(path.c_str());
    }
  }
};

/** So that names made, changed and removed in it survive the power. */
void sync_folder(const fs::path& folder) {
  const int file = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file >= 0) {
    (void)::fsync(file); // some file systems refuse; then they need none
    ::close(file);
  }
}

} // namespace

void fail_file(const char* what, const fs::path& path, int error) {
  fail(Kind::unavailable, "[memory] could not {} {}: {}", what, path.string(), std::strerror(error));
}

void write_all(int file, std::string_view bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file, bytes.data(), bytes.size());
    if (written < 0 && errno != EINTR) {
      fail_file("write", path, errno);
    }
    bytes.remove_prefix(written < 0 ? 0 : static_cast<size_t>(written));
  }
}

void sync_file(int file, const fs::path& path) {
#ifdef __APPLE__
  const bool done = ::fcntl(file, F_FULLFSYNC) == 0 || ::fsync(file) == 0;
#else
  const bool done = ::fdatasync(file) == 0;
#endif
  if (!done) {
    fail_file("bring to the disk", path, errno);
  }
}

void write_durably(const fs::path& path, const std::vector<std::string_view>& pieces) {
  static std::atomic<unsigned> count = std::random_device{}();
  fs::path made = path;
  made += fmt::format(".{}.{:08x}.tmp", ::getpid(), count++);
  const int file = ::open(made.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (file < 0) {
    fail_file("make", made, errno);
  }
  Unfinished unfinished{file, made};
  for (const std::string_view piece : pieces) {
    write_all(file, piece, made);
  }
  sync_file(file, made);
  if (::rename(made.c_str(), path.c_str()) != 0) {
    fail_file("rename to", path, errno);
  }
  unfinished.renamed = true;
  sync_folder(path.parent_path());
}

void make_folders_durably(const fs::path& folder) {
  std::error_code error;
  if (folder.empty() || fs::is_directory(folder, error)) {
    return;
  }
  make_folders_durably(folder.parent_path());
  fs::create_directory(folder, error); // no error where another process has just made it
  if (error) {
    fail_file("make the folder", folder, error.value());
  }
  sync_folder(folder.parent_path());
}

} // namespace parallm
