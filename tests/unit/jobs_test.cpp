#include "mind/jobs.h"

#include <doctest/doctest.h>

#include <atomic>
#include <future>

using namespace parallm;
using Status = JobState::Status;

namespace {

/** Holds the jobs' thread inside a job until it goes or is told to end. */
struct Holding {
  std::promise<void> inside;
  std::atomic<bool> go = false;

  Jobs::Work work() {
    return [this](const Jobs::Progress& progress) {
      inside.set_value();
      while (!go) {
        progress.tokens(1);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    };
  }
  void wait() {
    inside.get_future().get();
  }
};

JobState named(const std::string& space, int64_t tokens = 1) {
  JobState state;
  state.space = space;
  state.tokens_total = tokens;
  return state;
}

JobState ended(Jobs& jobs, JobState state, Jobs::Work work) {
  std::promise<JobState> done;
  jobs.submit(std::move(state), std::move(work), [&](const JobState& job) { done.set_value(job); });
  return done.get_future().get();
}

} // namespace

TEST_CASE("jobs run one after another, in the order they came") {
  Jobs jobs;
  std::vector<int> order;
  std::atomic<int> at_once = 0;
  std::promise<void> last;
  for (int i = 0; i < 20; ++i) {
    jobs.submit(
        named("s"),
        [&, i](const Jobs::Progress&) {
          CHECK(++at_once == 1);
          order.push_back(i);
          --at_once;
        },
        [&, i](const JobState& job) {
          CHECK(job.status == Status::completed);
          if (i == 19) {
            last.set_value();
          }
        });
  }
  last.get_future().get();
  std::vector<int> expected(20);
  for (int i = 0; i < 20; ++i) {
    expected[i] = i;
  }
  CHECK(order == expected);
  CHECK(jobs.count() == 0);
}

TEST_CASE("jobs: what one says of itself, and the youngest first") {
  Jobs jobs;
  Holding first;
  const std::string running = jobs.submit(named("first", 7), first.work());
  first.wait();
  std::vector<std::string> ids;
  for (int i = 0; i < 5; ++i) {
    ids.push_back(jobs.submit(named(std::to_string(i)), [](const Jobs::Progress&) {}));
  }
  const auto list = jobs.list();
  REQUIRE(list.size() == 6);
  CHECK(jobs.count() == 6);
  for (int i = 0; i < 5; ++i) {
    CHECK(list[i].id == ids[4 - i]);
    CHECK(list[i].status == Status::queued);
  }
  CHECK(list[5].id == running);
  CHECK(list[5].status == Status::running);
  CHECK(list[5].tokens_total == 7);
  first.go = true;
  const JobState job = ended(jobs, named("s", 9), [](const Jobs::Progress& progress) {
    progress.tokens(4);
    progress.document({"a", "uid", 4, 400});
    progress.tokens(9);
  });
  CHECK(job.tokens_done == 9);
  CHECK(job.documents_done == 1);
  CHECK(job.documents.at(0).id == "a");
  CHECK(jobs.find(job.id)->documents.size() == 1);
  CHECK(jobs.list().at(0).documents.empty()); // a listing has counts alone
  CHECK(jobs.list().at(0).documents_done == 1);
}

TEST_CASE("jobs: an error is the job's, and the next one runs") {
  Jobs jobs;
  const JobState wrong = ended(jobs, named("s"), [](const Jobs::Progress& progress) {
    progress.document({"a", "uid", 1, 1});
    fail_field("documents[1].text", "[test] no good");
  });
  CHECK(wrong.status == Status::failed);
  CHECK(wrong.error->param == "documents[1].text");
  CHECK(wrong.documents.size() == 1); // is there
  const JobState ours = ended(jobs, named("s"), [](const Jobs::Progress&) { throw std::runtime_error("a secret"); });
  CHECK(ours.status == Status::failed);
  CHECK(ours.error->kind == Kind::internal);
  CHECK(std::string(ours.error->what()).find("secret") == std::string::npos);
  CHECK(ended(jobs, named("s"), [](const Jobs::Progress&) {}).status == Status::completed);
}

TEST_CASE("jobs: one that waits and one that runs are cancelled; an ended one can't be") {
  Jobs jobs;
  Holding first;
  std::promise<JobState> first_end, second_end;
  const std::string running =
      jobs.submit(named("s"), first.work(), [&](const JobState& job) { first_end.set_value(job); });
  first.wait();
  std::atomic<bool> ran = false;
  const std::string waiting = jobs.submit(
      named("s"), [&](const Jobs::Progress&) { ran = true; }, [&](const JobState& job) { second_end.set_value(job); });
  CHECK(jobs.cancel(waiting));
  CHECK(jobs.cancel(running));
  for (auto* end : {&first_end, &second_end}) {
    const JobState job = end->get_future().get();
    CHECK(job.status == Status::cancelled);
    REQUIRE(job.error); // who waits for it is told
    CHECK(job.error->kind == Kind::conflict);
  }
  CHECK_FALSE(ran);
  CHECK_FALSE(jobs.cancel(waiting));
  CHECK_FALSE(jobs.cancel(running));
  CHECK_FALSE(jobs.cancel("job_none"));
  CHECK(ended(jobs, named("s"), [](const Jobs::Progress&) {}).status == Status::completed);
}

TEST_CASE("jobs: too many that wait, or too long ones, are refused") {
  Jobs jobs;
  Holding first;
  jobs.submit(named("s", Jobs::most_waiting_tokens), first.work());
  first.wait(); // it runs: of those that wait it is none
  const auto nothing = [](const Jobs::Progress&) {};
  const auto kind = [&](int64_t tokens) {
    try {
      jobs.submit(named("s", tokens), nothing);
    } catch (const Error& error) {
      return error.kind;
    }
    return Kind::not_found; // of none
  };
  const std::string large = jobs.submit(named("s", 2 * Jobs::most_waiting_tokens), nothing); // alone it may
  CHECK(kind(1) == Kind::busy);
  CHECK(jobs.cancel(large));
  for (size_t i = 0; i < Jobs::most_waiting; ++i) {
    CHECK(kind(1) == Kind::not_found);
  }
  CHECK(kind(1) == Kind::busy);
  first.go = true;
}

TEST_CASE("jobs: the end cancels the running one and those that wait, and each is told") {
  std::vector<JobState> told;
  std::mutex mutex;
  const auto tell = [&](const JobState& job) {
    std::lock_guard lock(mutex);
    told.push_back(job);
  };
  Holding first;
  std::atomic<bool> ran = false;
  {
    Jobs jobs;
    jobs.submit(named("0"), first.work(), tell);
    first.wait();
    for (int i = 1; i < 4; ++i) {
      jobs.submit(
          named(std::to_string(i)), [&](const Jobs::Progress&) { ran = true; }, tell);
    }
    jobs.stop();
    try {
      jobs.submit(named("late"), [](const Jobs::Progress&) {});
      FAIL("a job was taken after the end");
    } catch (const Error& error) {
      CHECK(error.kind == Kind::unavailable);
    }
  }
  CHECK_FALSE(ran);
  REQUIRE(told.size() == 4);
  for (const JobState& job : told) {
    CHECK(job.status == Status::cancelled);
    CHECK(job.error->kind == Kind::unavailable);
  }
}

TEST_CASE("jobs: the oldest of those that ended are forgotten") {
  Jobs jobs;
  const std::string first = ended(jobs, named("s"), [](const Jobs::Progress&) {}).id;
  for (size_t i = 1; i < Jobs::most_ended; ++i) {
    ended(jobs, named("s"), [](const Jobs::Progress&) {});
  }
  CHECK(jobs.find(first));
  const JobState last = ended(jobs, named("s"), [](const Jobs::Progress&) {});
  CHECK_FALSE(jobs.find(first));
  CHECK(jobs.list().size() == Jobs::most_ended);
  ended(jobs, named("s"), [](const Jobs::Progress& progress) {
    for (size_t i = 0; i <= Jobs::most_ended_documents; ++i) {
      progress.document({"a", "", 1, 1});
    }
  });
  CHECK(jobs.list().size() == 1); // it alone has more than all may have
  CHECK_FALSE(jobs.find(last.id));
}
