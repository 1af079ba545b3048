#include "engine/engine.h"

#include "base/channel.h"
#include "base/trace.h"
#include "engine/scheduler.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <thread>
#include <unordered_map>
#include <variant>

namespace parallm {
namespace {

using Clock = std::chrono::steady_clock;

Error to_error(const std::exception_ptr& thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const Error& error) {
    return error;
  } catch (const std::exception& error) {
    return Error(Kind::internal, "", error.what());
  } catch (...) {
    return Error(Kind::internal, "", "[engine] something that is no exception was thrown");
  }
}

std::optional<Error> guard(const std::function<void()>& call) {
  try {
    call();
    return std::nullopt;
  } catch (...) {
    return to_error(std::current_exception());
  }
}

void check_id(const char* field, int32_t id, int vocabulary) {
  if (id < 0 || id >= vocabulary) {
    fail_field(field, "[generate] {} holds token ids from 0 to {}; got {}", field, vocabulary - 1, id);
  }
}

void check_request(const Request& request, const EngineOptions& options) {
  if (request.prompt.empty()) {
    fail_field("prompt", "[generate] prompt must hold a token; got none");
  }
  if (request.max_tokens < 0) {
    fail_field("max_tokens", "[generate] max_tokens must be at least 0; got {}", request.max_tokens);
  }
  for (int32_t id : request.prompt) {
    check_id("prompt", id, options.vocabulary);
  }
  const Sampling& sampling = request.sampling;
  check_ranges(sampling);
  for (const auto& [id, bias] : sampling.logit_bias) {
    check_id("logit_bias", id, options.vocabulary);
    if (!std::isfinite(bias)) {
      fail_field("logit_bias", "[generate] logit_bias holds finite numbers; got {}", bias);
    }
  }
  for (int32_t id : sampling.stop_token_ids) {
    check_id("stop_token_ids", id, options.vocabulary);
  }
  if (sampling.logprobs < -1) {
    fail_field("logprobs", "[generate] logprobs must be at least -1; got {}", sampling.logprobs);
  }
  if (request.recall.memories && !options.memories) {
    fail_field("memory", "[generate] memories need a model loaded with extended_mind; got some");
  }
  check(!request.recall.memories || !request.recall.key.empty(), "memories have a key");
  check(
      !request.recall.more || (request.recall.memories && request.recall.unsure_above > 0), "more than some memories");
  Scheduler::check_fits(request, options);
}

void check_options(const EngineOptions& options) {
  auto positive = [](const char* name, int value) {
    if (value < 1) {
      fail_field(name, "[engine] {} must be at least 1; got {}", name, value);
    }
  };
  positive("max_rows", options.max_rows);
  positive("block_size", options.block_size);
  positive("blocks", options.blocks);
  positive("prefill_tokens", options.prefill_tokens);
  positive("mixed_tokens", options.mixed_tokens);
  positive("vocabulary", options.vocabulary);
  if (options.max_waiting < 0) {
    fail_field("max_waiting", "[engine] max_waiting must be at least 0; got {}", options.max_waiting);
  }
  for (int32_t id : options.end_ids) {
    check_id("end_ids", id, options.vocabulary);
  }
}

} // namespace

struct Stream::State {
  void push(Event event) EXCLUDES(mutex) {
    std::function<void()> call;
    {
      Lock lock(mutex);
      if (events.empty()) {
        call = wake;
      }
      events.push_back(std::move(event));
      filled.notify_one();
    }
    if (call) {
      call();
    }
  }

  Event take() REQUIRES(mutex) {
    Event event = std::move(events.front());
    events.pop_front();
    ended = event.finish != Finish::none;
    return event;
  }

  Mutex mutex;
  std::condition_variable filled;
  std::deque<Event> events GUARDED_BY(mutex);
  std::function<void()> wake GUARDED_BY(mutex);
  bool ended GUARDED_BY(mutex) = false; // the last event was taken
  std::atomic<bool> cancelled = false; // the engine looks before each step
};

Stream::Stream(std::shared_ptr<State> state) : state_(std::move(state)) {}
Stream::Stream(Stream&&) noexcept = default;

Stream& Stream::operator=(Stream&& other) noexcept {
  if (this != &other) {
    cancel();
    state_ = std::move(other.state_);
  }
  return *this;
}

Stream::~Stream() {
  cancel();
}

Event Stream::next() {
  Lock lock(state_->mutex);
  check(!state_->ended, "a stream is read up to its last event");
  while (state_->events.empty()) {
    lock.wait(state_->filled);
  }
  return state_->take();
}

std::optional<Event> Stream::try_next() {
  Lock lock(state_->mutex);
  if (state_->events.empty()) {
    return std::nullopt;
  }
  return state_->take();
}

void Stream::on_ready(const std::function<void()>& wake) {
  bool now;
  {
    Lock lock(state_->mutex);
    state_->wake = wake;
    now = !state_->events.empty();
  }
  if (now && wake) {
    wake();
  }
}

void Stream::cancel() {
  if (state_) {
    state_->cancelled = true;
  }
}

struct Engine::Parts {
  using StreamState = std::shared_ptr<Stream::State>;
  struct Arrival {
    Request request;
    StreamState stream;
  };
  struct Job {
    std::function<void(Runner&)> work;
    std::promise<void> done;
  };
  using Message = std::variant<Arrival, Job>;
  using MakeRunner = std::function<std::unique_ptr<Runner>(EngineOptions&)>;

  explicit Parts(EngineOptions given)
      : options(std::move(given)), inbox(size_t(options.max_rows) + options.max_waiting) {}

  void work(const MakeRunner& make_runner);
  void loop();
  void take_inbox();
  void receive(Message message);
  void step();
  void collect();
  void flush();
  void recover(const std::exception_ptr& thrown);
  void publish();
  void end(const StreamState& stream, Event event);
  void refuse_all(const Error& error);

  EngineOptions options; // not changed after `made` is set
  Channel<Message> inbox;
  std::promise<void> made;

  mutable Mutex mutex;
  std::condition_variable ended;
  int live GUARDED_BY(mutex) = 0; // requests that have not ended
  bool draining GUARDED_BY(mutex) = false;
  std::optional<Error> broken GUARDED_BY(mutex); // for good
  EngineStats stats GUARDED_BY(mutex);

  // The engine's thread alone.
  std::unique_ptr<Runner> runner;
  std::optional<Scheduler> scheduler;
  std::unordered_map<uint64_t, StreamState> streams;
  std::deque<Clock::time_point> launched; // of the steps under way
  Clock::time_point collected;

  std::thread thread;
};

void Engine::Parts::work(const MakeRunner& make_runner) {
  try {
    runner = make_runner(options);
    check(runner != nullptr, "make_runner gives a runner");
    check_options(options);
    scheduler.emplace(options, guard);
    publish(); // the figures of an idle engine
    made.set_value();
  } catch (...) {
    runner.reset();
    made.set_exception(std::current_exception());
    return;
  }
  try {
    loop();
    refuse_all(Error(Kind::unavailable, "", "[engine] shutting down"));
  } catch (...) {
    // Our own books are wrong, or the runner can't be reset: nothing it would
    // say from here on could be trusted.
    Error error = to_error(std::current_exception());
    refuse_all(Error(Kind::unavailable, "", fmt::format("[engine] stopped by an error; got {}", error.what())));
  }
  runner.reset(); // on the thread that made it
}

void Engine::Parts::loop() {
  trace::name_thread("engine");
  while (!inbox.closed()) {
    take_inbox();
    try {
      step();
    } catch (...) {
      recover(std::current_exception());
    }
    publish();
  }
}

/** Waits only where there is nothing else to do. */
void Engine::Parts::take_inbox() {
  if (scheduler->idle()) {
    scheduler->verify();
    if (auto message = inbox.pop()) {
      receive(std::move(*message));
    }
  }
  while (auto message = inbox.try_pop()) {
    receive(std::move(*message));
  }
  for (const auto& [row, stream] : streams) {
    if (stream->cancelled) {
      scheduler->cancel(row);
    }
  }
}

void Engine::Parts::receive(Message message) {
  if (auto* job = std::get_if<Job>(&message)) {
    flush();
    try {
      job->work(*runner);
      job->done.set_value();
    } catch (...) {
      job->done.set_exception(std::current_exception());
    }
    return;
  }
  Arrival& arrival = std::get<Arrival>(message);
  streams.emplace(scheduler->add(std::move(arrival.request)), std::move(arrival.stream));
}

/** Launches a step, then reads the one before, so that the device is never
 * without work. */
void Engine::Parts::step() {
  Plan plan;
  {
    trace::Span span("plan");
    plan = scheduler->plan();
  }
  if (!plan.empty()) {
    trace::Span span("launch");
    span.note("step", static_cast<int64_t>(plan.number));
    span.note("rows", static_cast<int64_t>(plan.rows.size()));
    launched.push_back(Clock::now());
    runner->launch(plan);
  }
  if (scheduler->uncommitted() > (plan.empty() ? 0 : 1)) {
    collect();
  }
}

void Engine::Parts::collect() {
  std::vector<RowResult> results;
  {
    trace::Span span("collect");
    results = runner->collect();
  }
  const auto begun = std::max(launched.front(), collected);
  launched.pop_front();
  collected = Clock::now();
  trace::Span span("commit");
  scheduler->commit(std::move(results), std::chrono::duration<double>(collected - begun).count());
}

void Engine::Parts::flush() {
  try {
    while (scheduler->uncommitted() > 0) {
      collect();
    }
  } catch (...) {
    recover(std::current_exception());
  }
  publish();
}

void Engine::Parts::recover(const std::exception_ptr& thrown) {
  launched.clear();
  runner->reset();
  scheduler->failed(to_error(thrown));
}

void Engine::Parts::publish() {
  trace::Span span("publish");
  auto events = scheduler->take_events();
  {
    Lock lock(mutex);
    stats = scheduler->stats();
  }
  for (RowEvent& event : events) {
    auto stream = streams.find(event.row);
    if (event.event.finish == Finish::none) {
      stream->second->push(std::move(event.event));
    } else {
      end(stream->second, std::move(event.event));
      streams.erase(stream);
    }
  }
}

/** Its place is free before its last event is seen, so that who waits for that
 * one can ask again at once. */
void Engine::Parts::end(const StreamState& stream, Event event) {
  {
    Lock lock(mutex);
    --live;
  }
  stream->push(std::move(event));
  ended.notify_all();
}

/** The thread's last act: every request there is ends, every later one is
 * refused. */
void Engine::Parts::refuse_all(const Error& error) {
  bool cancels;
  {
    Lock lock(mutex);
    cancels = draining && inbox.closed();
    broken = error;
  }
  inbox.close();
  Event last;
  last.finish = cancels ? Finish::cancelled : Finish::error;
  if (!cancels) {
    last.error = error;
  }
  for (const auto& [row, stream] : streams) {
    end(stream, last);
  }
  streams.clear();
  while (auto message = inbox.try_pop()) {
    if (auto* arrival = std::get_if<Arrival>(&*message)) {
      end(arrival->stream, last);
    } else {
      std::get<Job>(*message).done.set_exception(std::make_exception_ptr(error));
    }
  }
}

Engine::Engine(EngineOptions options, std::function<std::unique_ptr<Runner>(EngineOptions&)> make_runner)
    : parts_(std::make_unique<Parts>(std::move(options))) {
  parts_->thread = std::thread([parts = parts_.get(), make = std::move(make_runner)] { parts->work(make); });
  auto made = parts_->made.get_future();
  made.wait();
  if (parts_->runner == nullptr) {
    parts_->thread.join();
  }
  made.get();
}

Engine::~Engine() {
  {
    Lock lock(parts_->mutex);
    parts_->draining = true;
  }
  parts_->inbox.close();
  parts_->thread.join();
}

Stream Engine::generate(Request request) {
  check_request(request, parts_->options);
  const int limit = parts_->options.max_rows + parts_->options.max_waiting;
  auto stream = std::make_shared<Stream::State>();
  Parts::Message message = Parts::Arrival{std::move(request), stream};
  Lock lock(parts_->mutex);
  if (parts_->broken) {
    throw *parts_->broken;
  }
  if (parts_->draining) {
    fail(Kind::unavailable, "[generate] no new requests: shutting down");
  }
  // Jobs use the inbox too, so it can be full before the limit is reached.
  if (parts_->live >= limit || parts_->inbox.try_push(message) != Push::done) {
    fail(Kind::busy, "[generate] at most {} requests at once; got one more", limit);
  }
  ++parts_->live;
  return Stream(std::move(stream));
}

std::future<void> Engine::run(std::function<void(Runner&)> job) {
  Parts::Job task{std::move(job), {}};
  auto done = task.done.get_future();
  Parts::Message message = std::move(task);
  if (parts_->inbox.push(message) != Push::done) {
    fail(Kind::unavailable, "[run] no new jobs: the engine has stopped");
  }
  return done;
}

bool Engine::drain(std::chrono::milliseconds limit) {
  const auto until = Clock::now() + limit;
  Lock lock(parts_->mutex);
  parts_->draining = true;
  while (parts_->live > 0) {
    if (lock.wait_until(parts_->ended, until) == std::cv_status::timeout) {
      return parts_->live == 0;
    }
  }
  return true;
}

EngineStats Engine::stats() const {
  Lock lock(parts_->mutex);
  return parts_->stats;
}

const EngineOptions& Engine::options() const {
  return parts_->options;
}

} // namespace parallm
