// A progress bar with rate and time left on a terminal; silent elsewhere. One
// thread.
#pragma once

#include <chrono>
#include <cstdio>
#include <string>

namespace parallm {

class Progress {
 public:
  Progress(size_t prompts, FILE* out, bool shown);
  ~Progress(); // wipes the bar

  void tokens(int count);
  void prompt_done();
  /** Wipes the bar, so that a line can be printed; it comes back with the next
   * update. */
  void clear();
  /** "3 prompts, 120 tokens in 2.1 s: 57 tokens/s" */
  std::string summary() const;

 private:
  void draw();
  double seconds() const;

  size_t prompts_;
  FILE* out_;
  bool shown_;
  bool drawn_ = false;
  size_t done_ = 0;
  size_t tokens_ = 0;
  std::chrono::steady_clock::time_point start_, last_;
};

} // namespace parallm
