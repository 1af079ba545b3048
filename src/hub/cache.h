// The cache's folders, links and locks; hub.h draws the layout. A Cache is one repository's part of it and holds only
// paths: any thread, any process.
#pragma once

#include "hub/names.h"

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace parallm {

class Cache {
 public:
  Cache(const std::string& folder, const std::string& repo);

  std::filesystem::path blob(const std::string& etag) const;
  std::filesystem::path lock(const std::string& etag) const;
  std::filesystem::path snapshot(const std::string& commit) const;

  /** The commit that the revision is, or was when last seen. */
  std::optional<std::string> commit(const std::string& revision) const;
  /** Written whole by a rename; nothing where it is so already or `revision` is the commit. False: it can't be written.
   */
  bool set_commit(const std::string& revision, const std::string& commit) const;

  /** Whether the snapshot has the file, in the listed size. */
  bool has(const std::string& commit, const HubFile& file) const;
  /** Whether the blob is there, in the listed size. */
  bool has_blob(const HubFile& file) const;
  /** snapshots/<commit>/<path> becomes a link to the blob: a symbolic one, else a hard one, else the blob itself. */
  void link(const std::string& commit, const HubFile& file) const;

  /** What a folder lacks to be loaded: config.json, weights (all that an index names), a tokenizer. Empty: nothing. */
  std::vector<std::string> lacks(const std::string& commit) const;
  /** Paths in the snapshot, of files that are there. */
  std::vector<std::string> files(const std::string& commit) const;

  const std::filesystem::path& folder() const {
    return folder_;
  }

 private:
  std::filesystem::path folder_; // models--ORG--NAME
  std::filesystem::path locks_;
};

/** An exclusive flock on a lock file, as Python's filelock takes it, for its scope. The system frees it with the
 * process. */
class FileLock {
 public:
  explicit FileLock(std::filesystem::path path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  /** Doesn't wait. True also where the file system has no locks: blobs are right without (blob.cpp says why). */
  bool try_lock();

 private:
  std::filesystem::path path_;
  int file_ = -1;
};

/** Folders up to and with `folder`. Errors: unavailable, with the system's reason. */
void make_folders(const std::filesystem::path& folder);

/** Throws what errno says: a full disk in words of its own. */
[[noreturn]] void fail_system(const std::string& what, const std::filesystem::path& path, int error);

} // namespace parallm
