#include "commands/progress.h"

#include <fmt/format.h>

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

namespace parallm {

namespace {

std::string clock_time(double seconds) {
  const auto s = static_cast<long>(seconds + 0.5);
  if (s >= 3600) {
    return fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
  }
  return fmt::format("{:02}:{:02}", s / 60, s % 60);
}

size_t width(FILE* out) {
  winsize size{};
  return ioctl(fileno(out), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

} // namespace

Progress::Progress(size_t prompts, FILE* out, bool shown)
    : prompts_(prompts),
      out_(out),
      shown_(shown && isatty(fileno(out)) == 1),
      start_(std::chrono::steady_clock::now()),
      last_(start_) {}

Progress::~Progress() {
  clear();
}

double Progress::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Progress::tokens(int count) {
  tokens_ += count;
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ > std::chrono::milliseconds(100)) {
    last_ = now;
    draw();
  }
}

void Progress::prompt_done() {
  ++done_;
  draw();
}

void Progress::clear() {
  if (drawn_) {
    fmt::print(out_, "\r\x1b[K");
    std::fflush(out_);
    drawn_ = false;
  }
}

void Progress::draw() {
  if (!shown_) {
    return;
  }
  const double s = seconds();
  // Time left is known only from prompts that are done.
  std::string left = done_ == 0 ? "--:--" : clock_time(s / done_ * static_cast<double>(prompts_ - done_));
  std::string tail =
      fmt::format(" {}/{} prompts, {:.0f} tokens/s, {} left", done_, prompts_, tokens_ / std::max(s, 1e-9), left);
  const size_t room = width(out_) > tail.size() + 4 ? std::min<size_t>(40, width(out_) - tail.size() - 4) : 0;
  const size_t full = prompts_ == 0 ? room : room * done_ / prompts_;
  fmt::print(out_, "\r[{}{}]{}\x1b[K", std::string(full, '#'), std::string(room - full, '.'), tail);
  std::fflush(out_);
  drawn_ = true;
}

std::string Progress::summary() const {
  const double s = seconds();
  return fmt::format(
      "{} prompt{}, {} tokens in {:.2f} s: {:.1f} tokens/s",
      done_,
      done_ == 1 ? "" : "s",
      tokens_,
      s,
      tokens_ / std::max(s, 1e-9));
}

} // namespace parallm
