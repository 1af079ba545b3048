#include "hub/cache.h"

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>

namespace parallm {

namespace fs = std::filesystem;

namespace {

std::string folder_name(const std::string& repo) {
  std::string name = "models--" + repo;
  const size_t slash = name.find('/');
  return name.replace(slash, 1, "--");
}

bool has_size(const fs::path& path, const std::optional<uint64_t>& size) {
  std::error_code error;
  const uint64_t found = fs::file_size(path, error); // follows links
  return !error && (!size || found == *size);
}

/** For a file's name that no other thread or process takes. */
std::string unique_ending() {
  static std::atomic<unsigned> count = std::random_device{}();
  return fmt::format(".{}.{:08x}.tmp", getpid(), count++);
}

bool links_wanted() {
  const char* value = std::getenv("HF_HUB_DISABLE_SYMLINKS");
  return value == nullptr || *value == 0 || *value == '0';
}

/** The shards that an index names and the folder lacks. */
std::vector<std::string> lacking_shards(const fs::path& index) {
  const json::value value = parse_json(read_file(index.string()), index.string());
  const auto* map = value.is_object() ? value.as_object().if_contains("weight_map") : nullptr;
  std::vector<std::string> lacking;
  if (map == nullptr || !map->is_object()) {
    return {index.string() + " with a weight_map"};
  }
  for (const auto& [tensor, file] : map->as_object()) {
    const std::string name = file.is_string() ? std::string(file.as_string()) : "";
    const bool known = std::find(lacking.begin(), lacking.end(), name) != lacking.end();
    if (!known && !fs::exists(index.parent_path() / name)) {
      lacking.push_back(name);
    }
  }
  return lacking;
}

} // namespace

void fail_system(const std::string& what, const fs::path& path, int error) {
  if (error == ENOSPC || error == EDQUOT) {
    fail(
        Kind::unavailable,
        "[hub] the disk is full: could not {} {}; what is there already is kept, and the next try goes on from it",
        what,
        path.string());
  }
  fail(Kind::unavailable, "[hub] could not {} {}: {}", what, path.string(), std::strerror(error));
}

void make_folders(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) {
    fail_system("make the folder", folder, error.value());
  }
}

Cache::Cache(const std::string& folder, const std::string& repo)
    : folder_(fs::path(folder) / folder_name(repo)), locks_(fs::path(folder) / ".locks" / folder_name(repo)) {}

fs::path Cache::blob(const std::string& etag) const {
  return folder_ / "blobs" / etag;
}

fs::path Cache::lock(const std::string& etag) const {
  return locks_ / (etag + ".lock");
}

fs::path Cache::snapshot(const std::string& commit) const {
  return folder_ / "snapshots" / commit;
}

std::optional<std::string> Cache::commit(const std::string& revision) const {
  if (is_commit(revision)) {
    return revision;
  }
  const fs::path path = folder_ / "refs" / revision;
  if (!fs::is_regular_file(path)) {
    return {};
  }
  std::string commit = read_file(path.string());
  commit.erase(commit.find_last_not_of(" \r\n\t") + 1);
  return is_commit(commit) ? std::optional(commit) : std::nullopt;
}

bool Cache::set_commit(const std::string& revision, const std::string& commit) const {
  if (this->commit(revision) == commit) {
    return true;
  }
  const fs::path path = folder_ / "refs" / revision;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  const fs::path written = path.string() + unique_ending();
  std::ofstream out(written, std::ios::binary);
  out << commit;
  out.close();
  if (!out || std::rename(written.c_str(), path.c_str()) != 0) {
    unlink(written.c_str());
    return false;
  }
  return true;
}

bool Cache::has(const std::string& commit, const HubFile& file) const {
  return has_size(snapshot(commit) / file.path, file.size);
}

bool Cache::has_blob(const HubFile& file) const {
  return has_size(blob(file.etag), file.size);
}

void Cache::link(const std::string& commit, const HubFile& file) const {
  const fs::path path = snapshot(commit) / file.path;
  const fs::path target = blob(file.etag);
  make_folders(path.parent_path());
  // Made under another name first: the rename replaces what another process may have just put there.
  const fs::path made = path.string() + unique_ending();
  bool done = links_wanted() && symlink(target.lexically_relative(path.parent_path()).c_str(), made.c_str()) == 0;
  done = done || ::link(target.c_str(), made.c_str()) == 0;
  if (std::rename(done ? made.c_str() : target.c_str(), path.c_str()) != 0) {
    const int error = errno;
    unlink(made.c_str());
    fail_system("write", path, error);
  }
}

std::vector<std::string> Cache::lacks(const std::string& commit) const {
  const fs::path folder = snapshot(commit);
  std::vector<std::string> lacking;
  if (!fs::exists(folder / "config.json")) {
    lacking.push_back("config.json");
  }
  if (fs::exists(folder / "model.safetensors.index.json")) {
    const auto shards = lacking_shards(folder / "model.safetensors.index.json");
    lacking.insert(lacking.end(), shards.begin(), shards.end());
  }
  bool weights = false, tokenizer = false;
  for (const std::string& file : files(commit)) {
    weights = weights || file.ends_with(".safetensors");
    tokenizer = tokenizer || file == "tokenizer.json" || file.ends_with(".model") || file.ends_with(".tiktoken") ||
        file == "tekken.json" || file == "vocab.json" || file == "vocab.txt";
  }
  if (!weights) {
    lacking.push_back("*.safetensors");
  }
  if (!tokenizer) {
    lacking.push_back("tokenizer.json");
  }
  return lacking;
}

std::vector<std::string> Cache::files(const std::string& commit) const {
  const fs::path folder = snapshot(commit);
  std::vector<std::string> found;
  std::error_code error;
  for (auto entry = fs::recursive_directory_iterator(folder, error); !error && entry != fs::end(entry);
       entry.increment(error)) {
    if (fs::is_regular_file(entry->path())) { // also at the end of a link
      found.push_back(entry->path().lexically_relative(folder).generic_string());
    }
  }
  std::sort(found.begin(), found.end());
  return found;
}

FileLock::FileLock(fs::path path) : path_(std::move(path)) {
  make_folders(path_.parent_path());
}

FileLock::~FileLock() {
  if (file_ >= 0) {
    close(file_); // which unlocks; the file stays, since another process may wait on it
  }
}

bool FileLock::try_lock() {
  const int file = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0664);
  if (file < 0) {
    fail_system("open the lock", path_, errno);
  }
  (void)fchmod(file, 0664); // for caches that users share, as huggingface_hub makes it; another's file refuses
  if (flock(file, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    close(file);
    return error != EWOULDBLOCK && error != EACCES && error != EINTR;
  }
  struct stat locked {};
  if (fstat(file, &locked) != 0 || locked.st_nlink == 0) { // older versions of filelock remove it: try the new one
    close(file);
    return false;
  }
  file_ = file;
  return true;
}

} // namespace parallm
