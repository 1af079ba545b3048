// A time line of what the process does, for people: with MLX_PARALLM_TRACE=file
// in the environment, spans are written there in Chrome's trace event format
// (JSON), which https://ui.perfetto.dev and chrome://tracing open. Without it a
// span costs a comparison. Any thread.
#pragma once

#include <chrono>
#include <cstdint>

namespace parallm::trace {

/** Whether spans are written: the environment at the process's start. */
bool on();

/** The calling thread's name in the time line. */
void name_thread(const char* name);

/** From its construction to its end, on the calling thread. Names outlive the
 * process's last span: string literals. */
class Span {
 public:
  explicit Span(const char* name) : name_(on() ? name : nullptr) {
    if (name_) {
      start_ = std::chrono::steady_clock::now();
    }
  }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;
  ~Span() {
    if (name_) {
      finish();
    }
  }

  /** A figure that is shown with it; at most two. */
  void note(const char* key, int64_t value) {
    if (name_ && notes_ < 2) {
      keys_[notes_] = key;
      values_[notes_++] = value;
    }
  }

 private:
  void finish() const;

  const char* name_;
  std::chrono::steady_clock::time_point start_;
  int notes_ = 0;
  const char* keys_[2];
  int64_t values_[2];
};

} // namespace parallm::trace
