// Records in a folder. Its layout:
//
//   log                      what happened, one line each, the oldest first:
//                              <16 hex digits> <JSON>\n, the digits being the first of the SHA-256 of the JSON
//                            {"format": "mlx_parallm memory 1"} begins it; then
//                            {"n": 7, "put": {record}, "embedding": "base64 of float32 little-endian"} and
//                            {"n": 8, "erase": {"namespace": ..., "ids": [...]}}; after a rewriting also
//                            {"n": 6, "namespace": ...}: its version. n grows by one with each change of the store.
//   lock                     flock'ed by who writes
//   contents/<2>/<uid>.json  text and token ids of a version, as such a line: written whole before its line in the log
//   tensors/                 tensors.h
//
// A change has happened when its line is whole in the log. A line cut short by a crash is no line, and the next writer
// removes it; one whose digits don't match is logged and passed over. Any number of processes may use the folder: each
// reads what others appended before it answers. When most of the log is of the past it is written anew, under another
// name and then renamed, and the others see by the file's number that it's another one.
//
// In memory: every record and its vector; search is exact, by comparing with all, unless a Nearest index is given.
#pragma once

#include "memory/nearest.h"
#include "memory/records.h"

#include "base/thread_annotations.h"

#include <filesystem>
#include <map>
#include <unordered_set>

namespace parallm {

class FileRecords : public Records {
 public:
  /** `make_nearest` may be empty. It serves namespaces of more than `exact` documents. */
  FileRecords(std::filesystem::path folder, MakeNearest make_nearest, size_t exact);
  ~FileRecords() override;

  Put put(const Document& document, IfExists if_exists) override;
  std::optional<Document> get(const std::string& space, const std::string& id) override;
  Page list(const std::string& space, const std::string& after, size_t limit, const Filter& filter) override;
  std::vector<Namespace> namespaces() override;
  Selection select(const Selector& selector) override;
  std::vector<std::string> erase(const std::string& space, const std::vector<std::string>& ids, const Filter& filter)
      override;
  uint64_t version(const std::string& space) override;
  std::vector<bool> known(const std::vector<std::string>& uids) override;

 private:
  struct Space {
    std::map<std::string, Document, std::less<>> documents; // with embedding, without contents
    uint64_t tokens = 0;
    uint64_t version = 0;
    std::unique_ptr<NearestDocuments> nearest; // made when first asked for
  };
  struct Found {
    float similarity;
    const Document* document; // of spaces_
  };
  struct Writing; // holds the lock file's lock

  void catch_up() REQUIRES(mutex_);
  void open_log() REQUIRES(mutex_);
  bool apply(std::string_view line, bool certain) REQUIRES(mutex_);
  void append(const std::string& text) REQUIRES(mutex_);
  void rewrite() REQUIRES(mutex_);
  void remove_document(Space& space, const std::string& id) REQUIRES(mutex_);
  void find_all(const Space& space, const Selector& selector, std::vector<Found>& found) REQUIRES(mutex_);
  bool find_nearest(Space& space, const Selector& selector, std::vector<Found>& found) REQUIRES(mutex_);
  /** Gone: a newer version has come meanwhile, so that asking again finds it. Altered: it has been logged. */
  enum class Reading { done, gone, altered };
  Reading read_document(Document& document) const;
  std::filesystem::path contents_path(const std::string& uid) const;
  void erase_contents(const std::string& uid) const;
  void sweep() REQUIRES(mutex_);

  const std::filesystem::path folder_;
  const MakeNearest make_nearest_;
  const size_t exact_;
  Mutex mutex_;
  int log_ GUARDED_BY(mutex_) = -1;
  uint64_t log_file_ GUARDED_BY(mutex_) = 0; // its number in the file system
  uint64_t read_ GUARDED_BY(mutex_) = 0; // bytes of it that are applied
  uint64_t changes_ GUARDED_BY(mutex_) = 0; // the greatest n
  uint64_t lines_ GUARDED_BY(mutex_) = 0;
  std::map<std::string, Space, std::less<>> spaces_ GUARDED_BY(mutex_);
  std::unordered_set<std::string> uids_ GUARDED_BY(mutex_);
};

} // namespace parallm
