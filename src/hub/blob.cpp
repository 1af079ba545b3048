#include "hub/blob.h"

#include "base/error.h"
#include "hub/digest.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>
#include <vector>

namespace parallm {

namespace {

namespace fs = std::filesystem;

/** The beginning of a blob on the disk. Bytes are written at their own place, never appended: where a file system's
 * locks don't hold, two processes write the same bytes to the same places and both end up right. */
class Partial {
 public:
  Partial(fs::path path, const HubFile& file)
      : path_(std::move(path)), etag_(file.etag), size_(*file.size), digest_(etag_, size_) {
    make_folders(path_.parent_path());
    file_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (file_ < 0) {
      fail_system("write", path_, errno);
    }
  }
  ~Partial() {
    close(file_);
  }
  Partial(const Partial&) = delete;
  Partial& operator=(const Partial&) = delete;

  /** Hashes what an earlier try left. False where it is stopped meanwhile. */
  bool go_on(FetchState& state) {
    struct stat found {};
    if (fstat(file_, &found) != 0) {
      fail_system("read", path_, errno);
    }
    const auto left = static_cast<uint64_t>(found.st_size);
    if (left > size_) {
      return true; // of something else: written over from the start
    }
    std::vector<char> piece(size_t{4} << 20);
    while (at_ < left) {
      const ssize_t got =
          pread(file_, piece.data(), std::min<uint64_t>(piece.size(), left - at_), static_cast<off_t>(at_));
      if (got <= 0) {
        fail_system("read", path_, got < 0 ? errno : EIO);
      }
      digest_.add({piece.data(), static_cast<size_t>(got)});
      count(state, got);
      found_bytes_ += static_cast<uint64_t>(got);
      state.found_bytes += static_cast<uint64_t>(got);
      if (state.stopped()) {
        return false;
      }
    }
    return true;
  }

  void start_again(FetchState& state) {
    state.bytes -= std::exchange(at_, 0);
    state.found_bytes -= std::exchange(found_bytes_, 0);
    digest_ = Digest(etag_, size_);
  }

  /** False: see error(). */
  bool write(std::string_view bytes, FetchState& state) {
    if (bytes.size() > size_ - at_) {
      too_long_ = true;
      return false;
    }
    digest_.add(bytes);
    while (!bytes.empty()) {
      const ssize_t put = pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(at_));
      if (put < 0 && errno == EINTR) {
        continue;
      }
      if (put <= 0) {
        error_ = put < 0 ? errno : ENOSPC;
        return false;
      }
      bytes.remove_prefix(static_cast<size_t>(put));
      count(state, put);
    }
    return true;
  }

  /** Once it is whole: checks the hash; false: it is something else, and is removed. */
  bool finish(const fs::path& blob) {
    if (!digest_.matches() || ftruncate(file_, static_cast<off_t>(size_)) != 0) {
      unlink(path_.c_str());
      return false;
    }
    // Where locks don't hold, another process may have renamed the same file.
    std::error_code error;
    if (std::rename(path_.c_str(), blob.c_str()) != 0 && fs::file_size(blob, error) != size_) {
      fail_system("write", blob, errno);
    }
    return true;
  }

  bool whole() const {
    return at_ == size_;
  }
  uint64_t at() const {
    return at_;
  }
  uint64_t size() const {
    return size_;
  }
  int error() const {
    return error_;
  }
  bool too_long() const {
    return too_long_;
  }
  const std::string& found() const {
    return digest_.found();
  }
  const fs::path& path() const {
    return path_;
  }

 private:
  void count(FetchState& state, ssize_t bytes) {
    at_ += static_cast<uint64_t>(bytes);
    state.bytes += static_cast<uint64_t>(bytes);
  }

  fs::path path_;
  std::string etag_;
  uint64_t size_;
  Digest digest_;
  int file_ = -1;
  uint64_t at_ = 0; // bytes that are there and hashed
  uint64_t found_bytes_ = 0; // of them those that were there at first
  int error_ = 0;
  bool too_long_ = false;
};

/** Another process may hold it for as long as its download takes. False where the state is stopped. */
bool wait_for(FileLock& lock, const HubFile& file, FetchState& state) {
  for (bool said = false; !lock.try_lock(); said = true) {
    if (!said) {
      state.warn(fmt::format("waiting for another process that is fetching {}", file.path));
    }
    if (!state.sleep(0.2)) {
      return false;
    }
  }
  return true;
}

/** Whether a 206 gives the bytes that were asked for. */
bool right_range(const Reply& head, uint64_t from, uint64_t size) {
  return head.header("content-range") == fmt::format("bytes {}-{}/{}", from, size - 1, size);
}

/** From where `partial` is to its end. False where the state is stopped. */
bool receive(const BlobSource& source, const HubFile& file, Http& http, Partial& partial, FetchState& state) {
  Question question = file_question(source.options, source.name, source.commit, file);
  for (int failures = 0; !partial.whole();) {
    const uint64_t before = question.from = partial.at();
    bool first = true, wrong_range = false;
    const Sink sink = [&](const Reply& head, std::string_view piece) {
      if (first && head.status == 206) {
        wrong_range = !right_range(head, before, partial.size());
      } else if (first && before > 0) {
        partial.start_again(state); // it sends all of it
      }
      first = false;
      return !wrong_range && partial.write(piece, state);
    };
    Reply reply = http.ask(question, sink);
    if (partial.error() != 0) {
      fail_system("write", partial.path(), partial.error());
    }
    if (state.stopped()) {
      return false;
    }
    if (partial.too_long()) {
      return true; // finish() says that it is something else
    }
    if (wrong_range || reply.status == 416) {
      partial.start_again(state);
      reply.failure = "the server's answer is of other bytes than those asked for";
      reply.stopped = false;
    } else if (partial.at() > before) {
      failures = 0;
    }
    if (reply.ok() && !partial.whole()) {
      reply.failure = fmt::format("the connection ended after {} of {} bytes", partial.at(), partial.size());
    }
    if (!partial.whole() && !worth_another_try(reply, ++failures, source.options.tries, file.path, state)) {
      if (state.stopped()) {
        return false;
      }
      explain(reply, source.options, source.name, file.path);
    }
  }
  return true;
}

} // namespace

void fetch_blob(const BlobSource& source, const Cache& cache, const HubFile& file, Http& http, FetchState& state) {
  const fs::path blob = cache.blob(file.etag);
  FileLock lock(cache.lock(file.etag));
  if (!wait_for(lock, file, state)) {
    return;
  }
  for (int tries = 1;; ++tries) {
    if (cache.has_blob(file)) { // another process was faster
      state.bytes += *file.size;
      state.found_bytes += *file.size;
      return;
    }
    Partial partial(blob.string() + ".incomplete", file);
    if (!partial.go_on(state) || !receive(source, file, http, partial, state)) {
      return;
    }
    if (partial.whole() && !partial.too_long() && partial.finish(blob)) {
      return;
    }
    unlink(partial.path().c_str());
    if (tries == 2) {
      fail(
          Kind::invalid,
          "[hub] {} of {} arrived twice as something else than the hub lists (hash {}, {} bytes), and nothing of it was "
          "kept; got hash {}",
          file.path,
          source.name.repo,
          file.etag,
          *file.size,
          partial.found().empty() ? "of a longer file" : partial.found());
    }
    state.warn(fmt::format("{}: what came is not what the hub lists; fetching it again", file.path));
    partial.start_again(state);
  }
}

} // namespace parallm
