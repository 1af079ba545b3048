// Progress bars with rate and time left on a terminal; elsewhere silent or, for what takes long, a line now and then.
// One thread each.
#pragma once

#include "library/mlx_parallm.h"

#include <chrono>
#include <cstdio>
#include <string>

namespace parallm {

/** One line of a terminal that is drawn over. */
class Bar {
 public:
  Bar(FILE* out, bool shown);
  ~Bar(); // wipes it

  void draw(double part, const std::string& tail);
  /** Wipes the bar, so that a line can be printed; it comes back with the next draw. */
  void clear();
  bool shown() const {
    return shown_;
  }

 private:
  FILE* out_;
  bool shown_;
  bool drawn_ = false;
};

/** Of prompts that are answered. */
class Progress {
 public:
  Progress(size_t prompts, FILE* out, bool shown);

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

  Bar bar_;
  size_t prompts_;
  size_t done_ = 0;
  size_t tokens_ = 0;
  std::chrono::steady_clock::time_point start_, last_;
};

/** Of files that come from the hub: what an OnFetch tells. On a terminal a bar, else a line at the start, every ten
 * seconds and at the end. Lines go to the log. */
class FetchBar {
 public:
  FetchBar(std::string model, FILE* out, bool shown);
  void operator()(const FetchProgress& progress);

 private:
  using Clock = std::chrono::steady_clock;
  std::string text(const FetchProgress& progress) const;
  double seconds() const; // since the first bytes

  std::string model_;
  bool shown_;
  Bar bar_;
  bool begun_ = false, ended_ = false;
  Clock::time_point start_, said_;
};

} // namespace parallm
