// Work that takes long, in the order it came, on one thread: reading documents.
// Each job is known by its id until `most_ended` younger ones have ended, or
// ones with `most_ended_documents` in all. Thread-safe.
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
  size_t documents_done = 0;
  std::vector<AddedDocument> documents; // that are done: whole and kept, also where the job failed later
  std::optional<Error> error; // of a job that failed or was cancelled
};

class Jobs {
 public:
  static constexpr size_t most_waiting = 256;
  static constexpr int64_t most_waiting_tokens = 16 << 20; // in all, unless one alone has more
  static constexpr size_t most_ended = 256, most_ended_documents = 100'000;

  /** What a job's work says of itself. `tokens` throws where the job was cancelled (conflict) or this ends
   * (unavailable). */
  struct Progress {
    std::function<void(int64_t tokens_done)> tokens;
    std::function<void(AddedDocument)> document;
  };
  using Work = std::function<void(const Progress&)>;
  using Ended = std::function<void(const JobState&)>; // must not throw

  Jobs();
  ~Jobs(); // stops, and waits for the running job

  /** `state` has what is known before it runs; its id is made. `ended` is called once, on the jobs' thread or on that
   * of cancel or stop. Errors: busy, where most_waiting wait, or jobs with most_waiting_tokens. */
  std::string submit(JobState state, Work work, Ended ended = {});
  std::optional<JobState> find(const std::string& id) const;
  /** Those that have not ended. */
  size_t count() const;
  /** The youngest first, without their `documents`. */
  std::vector<JobState> list() const;
  /** Ends it before its next step: documents that are done stay. False where there is none that has not ended. */
  bool cancel(const std::string& id);
  /** Ends all of them, the running one before its next step, and takes no more. */
  void stop();

 private:
  struct Job {
    JobState state;
    Work work;
    Ended ended;
    uint64_t number = 0; // in the order of submission
    bool cancelled = false;
  };
  using Entry = std::shared_ptr<Job>;

  void loop();
  void run(const Entry& job);
  void end(const Entry& job, JobState::Status status, std::optional<Error> error);
  std::optional<Error> reason_to_end(const Job& job) const REQUIRES(mutex_);

  mutable Mutex mutex_;
  std::condition_variable more_;
  std::deque<Entry> waiting_ GUARDED_BY(mutex_);
  int64_t waiting_tokens_ GUARDED_BY(mutex_) = 0;
  std::map<std::string, Entry> all_ GUARDED_BY(mutex_);
  std::deque<Entry> ended_ GUARDED_BY(mutex_); // the oldest first
  size_t ended_documents_ GUARDED_BY(mutex_) = 0;
  uint64_t submitted_ GUARDED_BY(mutex_) = 0;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

const char* status_name(JobState::Status status);

} // namespace parallm
