#include "text/text_stream.h"

#include "base/error.h"
#include "text/decoder.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace parallm {

struct TextStream::Parts {
  Decoder decoder;
  std::vector<std::string> stops;
  bool keep_stop;
  int free; // tokens to come in whose text nothing stops
  std::string held{}; // text that may belong to a stop string
  bool stopped = false;
  std::string stop{}; // the one that was found

  std::string certain(bool end);
};

namespace {

/** The first place from which `text`'s end may be the beginning of a stop
 * string; its size where there is none. */
size_t unsure_from(std::string_view text, const std::vector<std::string>& stops) {
  size_t first = text.size();
  for (const std::string& stop : stops) {
    size_t size = std::min(stop.size() - 1, text.size());
    for (; size > 0; --size) {
      if (text.ends_with(std::string_view(stop).substr(0, size))) {
        first = std::min(first, text.size() - size);
        break;
      }
    }
  }
  return first;
}

} // namespace

/** Takes from `held` what no stop string can claim. A stop string that was
 * found waits while one that begins before it may still come true; of two at
 * one place the shorter one is found. `end`: no more text comes. */
std::string TextStream::Parts::certain(bool end) {
  size_t at = std::string::npos;
  const std::string* found = nullptr;
  for (const std::string& candidate : stops) {
    size_t place = held.find(candidate);
    if (place < at || (found && place == at && candidate.size() < found->size())) {
      at = place;
      found = &candidate;
    }
  }
  size_t unsure = end ? held.size() : unsure_from(held, stops);
  if (found && at <= unsure) {
    stopped = true;
    stop = *found;
    std::string out = held.substr(0, at + (keep_stop ? stop.size() : 0));
    held.clear();
    return out;
  }
  std::string out = held.substr(0, unsure);
  held.erase(0, unsure);
  return out;
}

TextStream::TextStream(
    const Tokenizer& tokenizer,
    std::vector<std::string> stops,
    bool skip_special,
    bool keep_stop,
    int min_tokens)
    : parts_(std::make_unique<Parts>(Parts{{tokenizer, skip_special}, std::move(stops), keep_stop, min_tokens})) {
  for (const std::string& stop : parts_->stops) {
    if (stop.empty()) {
      fail_field("stop", "[stop] a stop string is empty");
    }
  }
}

TextStream::~TextStream() = default;
TextStream::TextStream(TextStream&&) noexcept = default;

std::string TextStream::push(int32_t id) {
  if (parts_->stopped) {
    return {};
  }
  if (parts_->free > 0) {
    --parts_->free;
    return parts_->decoder.push(id);
  }
  parts_->held += parts_->decoder.push(id);
  return parts_->certain(false);
}

bool TextStream::stopped() const {
  return parts_->stopped;
}

const std::string& TextStream::stop() const {
  return parts_->stop;
}

std::string TextStream::flush() {
  if (parts_->stopped) {
    return {};
  }
  parts_->held += parts_->decoder.flush();
  return parts_->certain(true);
}

} // namespace parallm
