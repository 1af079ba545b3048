// Runs a model whose rows have memories for tests.
#pragma once

#include "golden.h"

#include "engine/reader.h"
#include "kv/recall.h"

#include <boost/json.hpp>

#include <fstream>

namespace parallm::test {

inline const std::filesystem::path fixtures = "tests/golden/extended_mind";

using Logits = std::vector<std::vector<float>>;

/** A model whose rows may have memories. */
struct Recalling {
  using Wrap = std::function<std::unique_ptr<Caches>(std::unique_ptr<Caches>)>;

  /** `wrap`: what stands between memories and the caches that they are added to. */
  explicit Recalling(const std::string& path, mx::Dtype dtype = mx::float32, const Wrap& wrap = nullptr)
      : loaded(path, dtype, 96) {
    const int layers = loaded.model->cache_specs().size();
    auto caches = wrap ? wrap(std::move(loaded.caches)) : std::move(loaded.caches);
    loaded.caches = make_recall_caches(std::move(caches), layers);
  }

  std::shared_ptr<const Memory> read(const std::vector<int>& tokens, ReadHow how = {}) {
    Reader reader(*loaded.model, loaded.checkpoint.kv_dtype, {tokens.begin(), tokens.end()}, how);
    while (true) {
      if (auto memory = reader.step()) {
        return memory;
      }
    }
  }

  Loaded loaded;
};

inline std::shared_ptr<const Recalled> recalled(std::vector<std::shared_ptr<const Memory>> parts, RecallHow how) {
  return std::make_shared<Recalled>(std::make_shared<Memories>(std::move(parts)), std::move(how));
}

struct Row {
  std::vector<int> ids;
  int offset = 0;
  std::shared_ptr<const Recalled> memories;
  int first_block = 0;
  std::shared_ptr<MemoryRecord> record = nullptr;
};

/** Logits of all tokens of the rows, run in one step. */
inline Logits run(Recalling& model, const std::vector<Row>& rows) {
  std::vector<int> ids;
  std::vector<Span> spans;
  for (auto& row : rows) {
    Span span{int(ids.size()), int(row.ids.size()), row.offset, block_range(row.first_block, 24), 0, int(spans.size())};
    span.recalled = row.memories;
    span.record = row.record;
    spans.push_back(span);
    ids.insert(ids.end(), row.ids.begin(), row.ids.end());
  }
  model.loaded.caches->begin(spans);
  mx::array tokens(ids.data(), {int(ids.size())}, mx::int32);
  auto all = floats(model.loaded.model->logits(model.loaded.model->hidden(tokens, *model.loaded.caches)));
  for (auto& row : rows) {
    if (row.record && row.record->sums && row.record->sums->all) {
      mx::eval(*row.record->sums->all);
    }
  }
  const int width = model.loaded.model->vocabulary();
  Logits out;
  for (size_t i = 0; i < ids.size(); ++i) {
    out.emplace_back(all.begin() + i * width, all.begin() + (i + 1) * width);
  }
  return out;
}

inline boost::json::object cases() {
  std::ifstream file(fixtures / "cases.json");
  return boost::json::parse(file).as_object();
}

inline std::vector<int> numbers(const boost::json::value& value) {
  return boost::json::value_to<std::vector<int>>(value);
}

} // namespace parallm::test
