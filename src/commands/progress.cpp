#include "commands/progress.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

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

Bar::Bar(FILE* out, bool shown) : out_(out), shown_(shown && isatty(fileno(out)) == 1) {}

Bar::~Bar() {
  clear();
}

void Bar::clear() {
  if (drawn_) {
    fmt::print(out_, "\r\x1b[K");
    std::fflush(out_);
    drawn_ = false;
  }
}

void Bar::draw(double part, const std::string& tail) {
  if (!shown_) {
    return;
  }
  const size_t columns = width(out_);
  const size_t room = columns > tail.size() + 4 ? std::min<size_t>(40, columns - tail.size() - 4) : 0;
  const auto full = static_cast<size_t>(static_cast<double>(room) * std::clamp(part, 0.0, 1.0));
  fmt::print(out_, "\r[{}{}] {}\x1b[K", std::string(full, '#'), std::string(room - full, '.'), tail);
  std::fflush(out_);
  drawn_ = true;
}

Progress::Progress(size_t prompts, FILE* out, bool shown)
    : bar_(out, shown), prompts_(prompts), start_(std::chrono::steady_clock::now()), last_(start_) {}

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
  bar_.clear();
}

void Progress::draw() {
  const double s = seconds();
  // Time left is known only from prompts that are done.
  const std::string left = done_ == 0 ? "--:--" : clock_time(s / done_ * static_cast<double>(prompts_ - done_));
  bar_.draw(
      prompts_ == 0 ? 1 : static_cast<double>(done_) / prompts_,
      fmt::format("{}/{} prompts, {:.0f} tokens/s, {} left", done_, prompts_, tokens_ / std::max(s, 1e-9), left));
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

FetchBar::FetchBar(std::string model, FILE* out, bool shown)
    : model_(std::move(model)), shown_(shown), bar_(out, shown), start_(Clock::now()), said_(start_) {}

std::string FetchBar::text(const FetchProgress& progress) const {
  const double rate =
      static_cast<double>(progress.bytes - std::min(progress.found_bytes, progress.bytes)) / std::max(seconds(), 1e-9);
  const uint64_t rest = progress.total_bytes - std::min(progress.bytes, progress.total_bytes);
  return fmt::format(
      "{}: {}/{} files, {:.1f}/{:.1f} MB, {:.1f} MB/s, {} left",
      model_,
      progress.files_done,
      progress.files,
      progress.bytes / 1e6,
      progress.total_bytes / 1e6,
      rate / 1e6,
      rate > 0 ? clock_time(static_cast<double>(rest) / rate) : "--:--");
}

double FetchBar::seconds() const {
  return std::chrono::duration<double>(Clock::now() - start_).count();
}

void FetchBar::operator()(const FetchProgress& progress) {
  if (!progress.warning.empty()) {
    bar_.clear();
    spdlog::warn("{}", progress.warning);
    return;
  }
  if (ended_ || !shown_) {
    return;
  }
  if (!begun_) {
    begun_ = true;
    start_ = said_ = Clock::now();
    spdlog::info("fetching {}: {} files, {:.1f} MB", model_, progress.files, progress.total_bytes / 1e6);
  }
  ended_ = progress.files_done == progress.files;
  if (ended_) {
    bar_.clear();
    spdlog::info("fetched {}: {} files, {:.1f} MB", model_, progress.files, progress.total_bytes / 1e6);
  } else if (bar_.shown()) {
    bar_.draw(static_cast<double>(progress.bytes) / std::max<uint64_t>(progress.total_bytes, 1), text(progress));
  } else if (Clock::now() - said_ >= std::chrono::seconds(10)) {
    spdlog::info("{}", text(progress));
    said_ = Clock::now();
  }
}

} // namespace parallm
