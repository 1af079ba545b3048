#include "library/memories.h"

#include "base/thread_annotations.h"
#include "engine/reader.h"
#include "engine/runner.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <list>
#include <map>

namespace parallm {

namespace {

// Joined texts that are kept ready beyond the requests that use them.
constexpr size_t most_ready = 4;

struct Entry {
  uint64_t number; // of this version; never given again in this process, whose engine knows it in keys
  std::shared_ptr<const Memory> memory;
};

mx::Dtype dtype_of(const std::string& name) {
  return name == "float32" ? mx::float32 : name == "bfloat16" ? mx::bfloat16 : mx::float16; // also beside codes
}

/** A reader that a failing job leaves behind ends with the job, on its thread. */
struct Ending {
  std::unique_ptr<Reader>& reader;
  bool failed = true;
  ~Ending() {
    if (failed) {
      reader.reset();
    }
  }
};

} // namespace

struct MemoryManager::Parts {
  LanguageModel& model;
  Mutex mutex;
  std::map<std::string, std::map<std::string, Entry>> spaces GUARDED_BY(mutex);
  std::list<std::pair<std::string, std::shared_ptr<const Memories>>> ready GUARDED_BY(mutex); // last used first
  static inline std::atomic<uint64_t> last = 0;
};

MemoryManager::MemoryManager(LanguageModel& model) : parts_(new Parts{model, {}, {}, {}}) {}

MemoryManager::~MemoryManager() = default;

int MemoryManager::add_memories(
    const std::string& space,
    const std::string& id,
    std::vector<int32_t> tokens,
    const ReadOptions& options) {
  auto& engine = parts_->model.engine();
  if (!engine.options().memories) {
    fail(Kind::invalid, "[memory] the model must be loaded with extended_mind");
  }
  const auto dtype = dtype_of(parts_->model.info().kv_dtype);
  // Its tensors are the engine's thread's: it is made, run and ended there.
  std::unique_ptr<Reader> reader;
  std::shared_ptr<const Memory> memory;
  const auto run = [&](const std::function<void(Model&)>& job) {
    engine
        .run([&](Runner& runner) {
          Ending ending{reader};
          job(dynamic_cast<ModelRunner&>(runner).model());
          ending.failed = false;
        })
        .get();
  };
  const int chunk = engine.options().mixed_tokens;
  run([&](Model& model) {
    reader = std::make_unique<Reader>(
        model, dtype, std::move(tokens), ReadHow{options.stride, options.max_length, chunk, options.dropped});
  });
  while (!memory) {
    run([&](Model&) { memory = reader->step(); });
  }
  run([&](Model&) { reader.reset(); });
  Lock lock(parts_->mutex);
  if (!parts_->spaces[space].insert_or_assign(id, Entry{++Parts::last, memory}).second) {
    parts_->ready.clear(); // what the old one was a part of
  }
  return static_cast<int>(memory->tokens.size());
}

std::vector<std::string> MemoryManager::ids(const std::string& space) const {
  Lock lock(parts_->mutex);
  std::vector<std::string> out;
  if (auto found = parts_->spaces.find(space); found != parts_->spaces.end()) {
    for (auto& [id, entry] : found->second) {
      out.push_back(id);
    }
  }
  return out;
}

bool MemoryManager::erase(const std::string& space, const std::string& id) {
  Lock lock(parts_->mutex);
  auto found = parts_->spaces.find(space);
  if (found == parts_->spaces.end() || found->second.erase(id) == 0) {
    return false;
  }
  parts_->ready.clear(); // what it was a part of
  return true;
}

Recall MemoryManager::recall(const std::string& space, const std::vector<std::string>& ids, const RecallHow& how)
    const {
  if (how.top_k < 0) {
    fail_field("top_k", "[memory] top_k must not be negative; got {}", how.top_k);
  }
  if (how.threshold && !(std::abs(*how.threshold) <= 1)) {
    fail_field("similarity_threshold", "[memory] a threshold must be from -1 to 1; got {}", *how.threshold);
  }
  Lock lock(parts_->mutex);
  const auto found = parts_->spaces.find(space);
  std::vector<std::shared_ptr<const Memory>> chosen;
  std::string texts;
  const auto add = [&](const Entry& entry) {
    chosen.push_back(entry.memory);
    texts += fmt::format("{},", entry.number);
  };
  if (ids.empty() && found != parts_->spaces.end()) {
    for (auto& [id, entry] : found->second) {
      add(entry);
    }
  }
  for (const std::string& id : ids) {
    if (found == parts_->spaces.end() || !found->second.contains(id)) {
      fail(Kind::not_found, "[memory] no text of this id; got {}", id);
    }
    add(found->second.at(id));
  }
  if (chosen.empty()) {
    return {};
  }
  if (!how.layers.empty() && how.layers.size() != chosen[0]->layers.size()) {
    fail_field("layers", "[memory] there must be {} layers; got {}", chosen[0]->layers.size(), how.layers.size());
  }
  auto& ready = parts_->ready;
  auto known = std::find_if(ready.begin(), ready.end(), [&](auto& entry) { return entry.first == texts; });
  if (known == ready.end()) {
    ready.emplace_front(texts, std::make_shared<Memories>(std::move(chosen)));
  } else {
    ready.splice(ready.begin(), ready, known);
  }
  if (ready.size() > most_ready) {
    ready.pop_back();
  }
  const auto& memories = ready.front().second;
  std::string key = fmt::format(
      "{}/{}/{}/{}/{}/",
      texts,
      how.top_k,
      how.contiguous,
      how.by_dot,
      how.threshold ? fmt::format("{}", *how.threshold) : "");
  for (const bool used : how.layers) {
    key += used ? '1' : '0';
  }
  return {std::make_shared<Recalled>(memories, how), key, how.contiguous ? memories->tokens() : 0};
}

} // namespace parallm
