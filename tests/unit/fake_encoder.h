// An encoder of memories without a model: a memory is its token ids. What these types hold is the fake's own; the real
// ones are in kv/recall.h, which this binary doesn't link.
#pragma once

#include "mind/manager.h"
#include "unit/tokenizers.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <future>

namespace parallm {

struct Memory {
  std::vector<int32_t> tokens;
};

class Memories {
 public:
  std::vector<std::shared_ptr<const Memory>> parts;
};

class Recalled {
 public:
  std::shared_ptr<const Memories> memories;
};

namespace test {

/** Shared with the encoder, which a manager owns. */
struct FakeModel {
  std::string fingerprint = "one";
  int chunk = 4; // tokens a step
  std::mutex mutex;
  std::condition_variable changed;
  bool held = false; // readings wait between steps
  int reading = 0; // that have begun and not ended
  std::vector<Reading> readings; // in order
  int opened = 0;
  std::function<void(const Reading&)> on_read; // before the first step; may throw
  std::function<void()> on_open; // likewise

  void hold() {
    std::lock_guard lock(mutex);
    held = true;
  }
  void let_go() {
    {
      std::lock_guard lock(mutex);
      held = false;
    }
    changed.notify_all();
  }
  /** Until so many are being read. */
  void wait_reading(int count) {
    std::unique_lock lock(mutex);
    REQUIRE(changed.wait_for(lock, std::chrono::seconds(30), [&] { return reading == count; }));
  }
  size_t count() {
    std::lock_guard lock(mutex);
    return readings.size();
  }
};

class FakeEncoder : public MemoryEncoder {
 public:
  static constexpr int vocabulary_size = 264, context = 64, layer_count = 3;
  static constexpr size_t bytes_of_token = 100;

  explicit FakeEncoder(std::shared_ptr<FakeModel> model) : model_(std::move(model)) {}

  std::string fingerprint() const override {
    return model_->fingerprint;
  }
  int layers() const override {
    return layer_count;
  }
  int vocabulary() const override {
    return vocabulary_size;
  }
  int max_context() const override {
    return context;
  }

  std::shared_ptr<const Memory> read(Reading reading, const std::function<void(int)>& progress) override {
    {
      std::lock_guard lock(model_->mutex);
      model_->readings.push_back(reading);
      ++model_->reading;
    }
    model_->changed.notify_all();
    struct Ending {
      FakeModel& model;
      ~Ending() {
        {
          std::lock_guard lock(model.mutex);
          --model.reading;
        }
        model.changed.notify_all();
      }
    } ending{*model_};
    if (model_->on_read) {
      model_->on_read(reading);
    }
    auto memory = std::make_shared<Memory>();
    for (size_t at = 0; at < reading.ids.size(); ++at) {
      if (at % model_->chunk == 0) {
        progress(static_cast<int>(at));
        std::unique_lock lock(model_->mutex);
        while (model_->held) { // as long as nobody ends it
          model_->changed.wait_for(lock, std::chrono::milliseconds(1));
          lock.unlock();
          progress(static_cast<int>(at));
          lock.lock();
        }
      }
      const int32_t id = reading.ids[at];
      if (static_cast<int>(at) >= reading.dropped_first &&
          std::find(reading.dropped.begin(), reading.dropped.end(), id) == reading.dropped.end()) {
        memory->tokens.push_back(id);
      }
    }
    return memory;
  }

  std::vector<std::shared_ptr<const Memory>> split(
      std::shared_ptr<const Memory> memory,
      const std::vector<std::pair<int, int>>& parts) override {
    std::vector<std::shared_ptr<const Memory>> out;
    for (const auto& [begin, count] : parts) {
      const auto first = memory->tokens.begin() + begin;
      out.push_back(std::make_shared<Memory>(Memory{{first, first + count}}));
    }
    return out;
  }

  MemoryBytes bytes(std::shared_ptr<const Memory> memory) override {
    const auto& ids = memory->tokens;
    return {memory, {{reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t)}}};
  }

  std::shared_ptr<const Memory> open(const std::string& path) override {
    if (model_->on_open) {
      model_->on_open();
    }
    auto out = std::make_shared<Memory>();
    out->tokens.resize(std::filesystem::file_size(path) / sizeof(int32_t));
    std::ifstream(path).read(reinterpret_cast<char*>(out->tokens.data()), out->tokens.size() * sizeof(int32_t));
    std::lock_guard lock(model_->mutex);
    ++model_->opened;
    return out;
  }

  int tokens(const Memory& memory) const override {
    return static_cast<int>(memory.tokens.size());
  }
  size_t token_bytes() const override {
    return bytes_of_token;
  }

  /** How often each of 16 classes of ids is there. */
  std::vector<float> embedding(std::shared_ptr<const Memory> memory) override {
    std::vector<float> out(16, 0.01f);
    for (const int32_t id : memory->tokens) {
      out[id % 16] += 1;
    }
    return out;
  }

  std::vector<float> background(std::shared_ptr<const Memories> memories, const RecallHow&) override {
    size_t tokens = 0;
    for (const auto& part : memories->parts) {
      tokens += part->tokens.size();
    }
    return std::vector<float>(tokens, 0.0f);
  }

  std::shared_ptr<const Memories> join(std::vector<std::shared_ptr<const Memory>> parts) override {
    auto out = std::make_shared<Memories>();
    out->parts = std::move(parts);
    return out;
  }

  Recall recall(std::shared_ptr<const Memories> memories, RecallHow how, std::string key) override {
    int tokens = 0;
    for (const auto& part : memories->parts) {
      tokens += static_cast<int>(part->tokens.size());
    }
    auto out = std::make_shared<Recalled>();
    out->memories = std::move(memories);
    Recall recall{out, std::move(key), how.contiguous ? tokens : 0};
    recall.more = how.unsure_above > 0 ? out : nullptr;
    recall.unsure_above = how.unsure_above;
    return recall;
  }

 private:
  std::shared_ptr<FakeModel> model_;
};

/** A folder that goes with it. */
struct Folder {
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "mind_test.XXXXXX").string();
    path = mkdtemp(name.data());
  }
  ~Folder() {
    std::error_code gone;
    std::filesystem::remove_all(path, gone);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::filesystem::path path;
};

/** Begin token of the fake model. */
constexpr int32_t fake_bos = 261;

inline std::unique_ptr<MemoryManager> make_manager(
    std::shared_ptr<FakeModel> model,
    const Tokenizer& tokenizer,
    const Folder& folder,
    size_t ram_bytes = 1 << 20,
    size_t document_tokens = 1000) {
  MemoryOptions options{.store = "", .ram_bytes = ram_bytes, .document_tokens = document_tokens};
  return std::make_unique<MemoryManager>(
      std::make_unique<FakeEncoder>(std::move(model)),
      tokenizer,
      fake_bos,
      open_store((folder.path / "store").string()),
      options);
}

} // namespace test
} // namespace parallm
