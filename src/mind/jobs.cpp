#include "mind/jobs.h"

#include "base/log.h"
#include "base/random_hex.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>

namespace parallm {

Jobs::Jobs() : thread_([this] { loop(); }) {}

Jobs::~Jobs() {
  {
    Lock lock(mutex_);
    stopping_ = true;
  }
  more_.notify_all();
  thread_.join();
}

std::string Jobs::submit(JobState state, Work work, std::function<void()> ended) {
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

std::vector<JobState> Jobs::list() const {
  std::vector<JobState> out;
  {
    Lock lock(mutex_);
    for (auto& [id, job] : all_) {
      out.push_back(job->state);
    }
  }
  std::stable_sort(out.begin(), out.end(), [](auto& a, auto& b) { return a.created > b.created; });
  return out;
}

bool Jobs::cancel(const std::string& id) {
  Entry waiting;
  {
    Lock lock(mutex_);
    const auto found = all_.find(id);
    if (found == all_.end() || found->second->state.status > JobState::Status::running) {
      return false;
    }
    found->second->cancelled = true;
    if (found->second->state.status == JobState::Status::queued) {
      waiting = found->second;
      std::erase(waiting_, waiting);
    }
  }
  if (waiting) {
    end(waiting, JobState::Status::cancelled, std::nullopt);
  }
  return true;
}

void Jobs::end(const Entry& job, JobState::Status status, std::optional<Error> error) {
  {
    Lock lock(mutex_);
    job->state.status = status;
    job->state.error = std::move(error);
    job->work = {};
    ended_.push_back(job->state.id);
    if (ended_.size() > most_ended) {
      all_.erase(ended_.front());
      ended_.pop_front();
    }
  }
  if (job->ended) {
    job->ended();
  }
}

void Jobs::run(const Entry& job) {
  const auto go_on = [&]() REQUIRES(mutex_) {
    if (job->cancelled || stopping_) {
      fail(Kind::unavailable, "[memory] the job was cancelled");
    }
  };
  Progress progress;
  progress.tokens = [&](int64_t done) {
    Lock lock(mutex_);
    go_on();
    job->state.tokens_done = done;
  };
  progress.document = [&](AddedDocument document) {
    Lock lock(mutex_);
    job->state.documents.push_back(std::move(document));
  };
  std::optional<Error> error;
  try {
    progress.tokens(0); // a job that was cancelled while it waited, or is told so at the end, does nothing
    job->work(progress);
  } catch (const Error& thrown) {
    error = thrown;
  } catch (const std::exception& thrown) {
    spdlog::error("[memory] a job failed: {}", thrown.what());
    error = Error(Kind::internal, "", "[memory] internal error");
  }
  bool cancelled = false;
  {
    Lock lock(mutex_);
    cancelled = job->cancelled || stopping_;
  }
  using Status = JobState::Status;
  end(job, !error ? Status::completed : cancelled ? Status::cancelled : Status::failed, std::move(error));
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
