#include "mind/jobs.h"

#include "base/log.h"
#include "base/random_hex.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace parallm {

Jobs::Jobs() : thread_([this] { loop(); }) {}

Jobs::~Jobs() {
  stop();
  thread_.join();
}

void Jobs::stop() {
  std::deque<Entry> left;
  {
    Lock lock(mutex_);
    stopping_ = true;
    left = std::exchange(waiting_, {});
    waiting_tokens_ = 0;
  }
  more_.notify_all();
  for (const Entry& job : left) {
    end(job, JobState::Status::cancelled, Error(Kind::unavailable, "", "[memory] the server is shutting down"));
  }
}

std::string Jobs::submit(JobState state, Work work, Ended ended) {
  using namespace std::chrono;
  state.id = "job_" + random_hex(24);
  state.created = duration_cast<seconds>(system_clock::now().time_since_epoch()).count();
  auto job = std::make_shared<Job>(Job{std::move(state), std::move(work), std::move(ended)});
  const std::string id = job->state.id;
  {
    Lock lock(mutex_);
    if (stopping_) {
      fail(Kind::unavailable, "[memory] the server is shutting down");
    }
    if (waiting_.size() >= most_waiting) {
      fail(Kind::busy, "[memory] {} jobs are waiting already", most_waiting);
    }
    if (!waiting_.empty() && waiting_tokens_ + job->state.tokens_total > most_waiting_tokens) {
      fail(Kind::busy, "[memory] jobs with {} tokens are waiting already", waiting_tokens_);
    }
    job->number = ++submitted_;
    waiting_tokens_ += job->state.tokens_total;
    all_[id] = job;
    waiting_.push_back(std::move(job));
  }
  more_.notify_one();
  return id;
}

std::optional<JobState> Jobs::find(const std::string& id) const {
  Lock lock(mutex_);
  const auto found = all_.find(id);
  return found == all_.end() ? std::nullopt : std::optional(found->second->state);
}

size_t Jobs::count() const {
  Lock lock(mutex_);
  return all_.size() - ended_.size();
}

std::vector<JobState> Jobs::list() const {
  Lock lock(mutex_);
  std::vector<const Job*> jobs;
  for (const auto& [id, job] : all_) {
    jobs.push_back(job.get());
  }
  std::sort(jobs.begin(), jobs.end(), [](auto* a, auto* b) { return a->number > b->number; });
  std::vector<JobState> out;
  for (const Job* job : jobs) {
    const JobState& state = job->state;
    JobState& one = out.emplace_back();
    one.id = state.id;
    one.space = state.space;
    one.status = state.status;
    one.created = state.created;
    one.tokens_total = state.tokens_total;
    one.tokens_done = state.tokens_done;
    one.documents_total = state.documents_total;
    one.documents_done = state.documents_done;
    one.error = state.error;
  }
  return out;
}

std::optional<Error> Jobs::reason_to_end(const Job& job) const {
  if (job.cancelled) {
    return Error(Kind::conflict, "", "[memory] the job was cancelled");
  }
  if (stopping_) {
    return Error(Kind::unavailable, "", "[memory] the server is shutting down");
  }
  return std::nullopt;
}

bool Jobs::cancel(const std::string& id) {
  Entry waiting;
  std::optional<Error> reason;
  {
    Lock lock(mutex_);
    const auto found = all_.find(id);
    if (found == all_.end() || found->second->state.status > JobState::Status::running) {
      return false;
    }
    Job& job = *found->second;
    job.cancelled = true;
    reason = reason_to_end(job);
    if (std::erase(waiting_, found->second) > 0) {
      waiting = found->second;
      waiting_tokens_ -= job.state.tokens_total;
    }
  }
  if (waiting) {
    end(waiting, JobState::Status::cancelled, std::move(reason));
  }
  return true;
}

void Jobs::end(const Entry& job, JobState::Status status, std::optional<Error> error) {
  Work work; // may hold much: freed when nobody waits for the mutex
  {
    Lock lock(mutex_);
    work = std::move(job->work);
    job->state.status = status;
    job->state.error = std::move(error);
    ended_.push_back(job);
    ended_documents_ += job->state.documents.size();
    while (ended_.size() > most_ended || (ended_.size() > 1 && ended_documents_ > most_ended_documents)) {
      ended_documents_ -= ended_.front()->state.documents.size();
      all_.erase(ended_.front()->state.id);
      ended_.pop_front();
    }
  }
  // From here on nobody changes it.
  if (const Ended ended = std::move(job->ended)) {
    ended(job->state);
  }
}

void Jobs::run(const Entry& job) {
  Progress progress;
  progress.tokens = [&](int64_t done) {
    Lock lock(mutex_);
    if (const auto reason = reason_to_end(*job)) {
      throw *reason;
    }
    job->state.tokens_done = done;
  };
  progress.document = [&](AddedDocument document) {
    Lock lock(mutex_);
    job->state.documents.push_back(std::move(document));
    ++job->state.documents_done;
  };
  std::optional<Error> error;
  try {
    progress.tokens(0); // a job that was cancelled between waiting and running does nothing
    job->work(progress);
  } catch (const Error& thrown) {
    error = thrown;
  } catch (const std::exception& thrown) {
    spdlog::error("[memory] a job failed: {}", thrown.what());
    error = Error(Kind::internal, "", "[memory] internal error");
  }
  bool told = false;
  {
    Lock lock(mutex_);
    told = reason_to_end(*job).has_value();
  }
  using Status = JobState::Status;
  end(job, !error ? Status::completed : told ? Status::cancelled : Status::failed, std::move(error));
}

void Jobs::loop() {
  while (true) {
    Entry job;
    {
      Lock lock(mutex_);
      while (waiting_.empty() && !stopping_) {
        lock.wait(more_);
      }
      if (waiting_.empty()) {
        return;
      }
      job = std::move(waiting_.front());
      waiting_.pop_front();
      waiting_tokens_ -= job->state.tokens_total;
      job->state.status = JobState::Status::running;
    }
    run(job);
  }
}

const char* status_name(JobState::Status status) {
  switch (status) {
    case JobState::Status::queued:
      return "queued";
    case JobState::Status::running:
      return "running";
    case JobState::Status::completed:
      return "completed";
    case JobState::Status::failed:
      return "failed";
    default:
      return "cancelled";
  }
}

} // namespace parallm
