#include "api/service.h"

#include <algorithm>

namespace parallm {

Service::Service(ServiceOptions options) : options_(std::move(options)), created_(std::time(nullptr)) {
  check(!options_.ids.empty(), "a service has at least one model id");
}

void Service::ready(ServedModel model) {
  check(!loaded_, "a service gets one model");
  model_ = std::move(model);
  loaded_ = true;
  State expected = State::loading; // draining stays
  state_.compare_exchange_strong(expected, State::ready);
}

void Service::failed(std::string why) {
  check(state_ != State::failed, "loading fails once");
  failure_ = std::move(why);
  State expected = State::loading;
  state_.compare_exchange_strong(expected, State::failed);
}

void Service::draining() {
  state_ = State::draining;
}

void Service::cut_off() {
  if (memories()) {
    memories()->stop();
  }
}

State Service::state() const {
  return state_;
}

const ServedModel& Service::model() const {
  switch (state_.load()) {
    case State::ready:
      return model_;
    case State::loading:
      fail(Kind::unavailable, "[service] the model is loading");
    case State::draining:
      fail(Kind::unavailable, "[service] the server is shutting down");
    default:
      fail(Kind::unavailable, "[service] the model could not be loaded: {}", failure_);
  }
}

Engine* Service::engine() const {
  return loaded_ ? model_.engine.get() : nullptr;
}

MemoryManager* Service::memories() const {
  return loaded_ ? model_.memories.get() : nullptr;
}

const std::string& Service::failure() const {
  return failure_;
}

bool Service::serves(std::string_view id) const {
  return std::find(options_.ids.begin(), options_.ids.end(), id) != options_.ids.end();
}

const ServiceOptions& Service::options() const {
  return options_;
}

std::time_t Service::created() const {
  return created_;
}

Metrics& Service::metrics() {
  return metrics_;
}

} // namespace parallm
