// Work that takes long, in the order it came, on one thread: reading documents.
// Each job is known by its id until `most_ended` younger ones have ended.
// Thread-safe.
#pragma once

#include "base/error.h"
#include "base/thread_annotations.h"

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

namespace parallm {

/** A document that has become memories. */
struct AddedDocument {
  std::string id;
  std::string uid; // of this version
  int tokens = 0; // memories
  size_t bytes = 0; // of keys and values
};

/** A job as it is now. */
struct JobState {
  enum class Status { queued, running, completed, failed, cancelled };
  std::string id;
  std::string space;
  Status status = Status::queued;
  int64_t created = 0; // seconds since 1970
  int64_t tokens_total = 0;
  int64_t tokens_done = 0;
  size_t documents_total = 0;
  std::vector<AddedDocument> documents; // that are done: whole and kept, also where the job failed later
  std::optional<Error> error;
};

class Jobs {
 public:
  static constexpr size_t most_waiting = 256;
  static constexpr size_t most_ended = 256;

  /** What a job's work says of itself. Both throw (unavailable) where the job was cancelled or this ends. */
  struct Progress {
    std::function<void(int64_t tokens_done)> tokens;
    std::function<void(AddedDocument)> document;
  };
  using Work = std::function<void(const Progress&)>;

  Jobs();
  ~Jobs(); // waits for the running job, which is told to end

  /** `state` has what is known before it runs; its id is made. `ended` is called once, on the jobs' thread. Errors:
   * busy, where most_waiting wait. */
  std::string submit(JobState state, Work work, std::function<void()> ended = {});
  std::optional<JobState> find(const std::string& id) const;
  /** The youngest first. */
  std::vector<JobState> list() const;
  /** Ends it before its next step: documents that are done stay. False where there is none that has not ended. */
  bool cancel(const std::string& id);

 private:
  struct Job {
    JobState state;
    Work work;
    std::function<void()> ended;
    bool cancelled = false;
  };
  using Entry = std::shared_ptr<Job>;

  void loop();
  void run(const Entry& job);
  void end(const Entry& job, JobState::Status status, std::optional<Error> error);

  mutable Mutex mutex_;
  std::condition_variable more_;
  std::deque<Entry> waiting_ GUARDED_BY(mutex_);
  std::map<std::string, Entry> all_ GUARDED_BY(mutex_);
  std::deque<std::string> ended_ GUARDED_BY(mutex_); // ids, the oldest first
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

const char* status_name(JobState::Status status);

} // namespace parallm
