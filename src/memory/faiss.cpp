// The files store with a FAISS index over the vectors of each large namespace, in memory: it proposes, and the files
// store scores exactly. HNSW by default; IVF is built faster, and removes at once.

#include "base/error.h"
#include "memory/backends.h"
#include "memory/files.h"

#include <faiss/AutoTune.h>
#include <faiss/Index.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/index_factory.h>

#include <algorithm>
#include <cmath>
#include <unordered_set>

namespace parallm {

namespace {

using Index = int64_t; // faiss::idx_t, whose place changed between versions

/** By the name that FAISS's factory knows. */
std::unique_ptr<faiss::Index> make_index(size_t dimensions, const std::string& name) {
  return std::unique_ptr<faiss::Index>(
      faiss::index_factory(static_cast<int>(dimensions), name.c_str(), faiss::METRIC_INNER_PRODUCT));
}

void set(faiss::Index& index, const char* parameter, size_t value) {
  faiss::ParameterSpace().set_index_parameter(&index, parameter, static_cast<double>(value));
}

std::vector<int64_t> search_in(const faiss::Index& index, std::span<const float> unit, size_t count) {
  std::vector<Index> found(count);
  std::vector<float> scores(count);
  index.search(1, unit.data(), static_cast<Index>(count), scores.data(), found.data());
  std::erase(found, -1); // where it found fewer
  return {found.begin(), found.end()};
}

/** HNSW can't remove: what is removed stays as a way through the graph and is passed over, until there is as much of it
 * as of the rest; then the graph is built anew. */
class Hnsw : public Nearest {
 public:
  explicit Hnsw(size_t dimensions) : dimensions_(dimensions) {
    clear();
  }

  void add(std::span<const int64_t> keys, std::span<const float> units) override {
    index_->add(static_cast<Index>(keys.size()), units.data());
    keys_.insert(keys_.end(), keys.begin(), keys.end());
  }

  void remove(int64_t key) override {
    removed_.insert(key);
    constexpr size_t few = 1000;
    if (removed_.size() > std::max(few, keys_.size() / 2)) {
      std::vector<int64_t> keys;
      std::vector<float> units;
      for (size_t i = 0; i < keys_.size(); ++i) {
        if (!removed_.contains(keys_[i])) {
          keys.push_back(keys_[i]);
          units.resize(units.size() + dimensions_);
          index_->reconstruct(static_cast<Index>(i), units.data() + units.size() - dimensions_);
        }
      }
      clear();
      add(keys, units);
    }
  }

  std::vector<int64_t> search(std::span<const float> unit, size_t count) override {
    if (removed_.size() == keys_.size()) {
      return {};
    }
    // As many more as are removed; who gets too few for all that compares with all.
    const size_t wanted = std::min(count * keys_.size() / (keys_.size() - removed_.size()) + 1, keys_.size());
    set(*index_, "efSearch", std::max(least_visited, 2 * wanted));
    std::vector<int64_t> keys;
    for (const int64_t place : search_in(*index_, unit, wanted)) {
      if (!removed_.contains(keys_[place])) {
        keys.push_back(keys_[place]);
      }
    }
    return keys;
  }

 private:
  static constexpr size_t least_visited = 128;

  void clear() {
    index_ = make_index(dimensions_, "HNSW32,Flat"); // 32 neighbours
    keys_.clear();
    removed_.clear();
  }

  const size_t dimensions_;
  std::unique_ptr<faiss::Index> index_;
  std::vector<int64_t> keys_; // by place in the index
  std::unordered_set<int64_t> removed_;
};

/** Flat while there is too little to train on (FAISS wants 39 vectors a list); trained again when there is 4 times as
 * much. */
class Ivf : public Nearest {
 public:
  explicit Ivf(size_t dimensions) : dimensions_(dimensions) {}

  void add(std::span<const int64_t> keys, std::span<const float> units) override {
    for (size_t i = 0; i < keys.size(); ++i) {
      const std::span<const float> unit = units.subspan(i * dimensions_, dimensions_);
      units_[keys[i]].assign(unit.begin(), unit.end());
    }
    if (units_.size() >= next_training_) {
      train();
    } else if (index_) {
      const std::vector<Index> places(keys.begin(), keys.end());
      index_->add_with_ids(static_cast<Index>(keys.size()), units.data(), places.data());
    }
  }

  void remove(int64_t key) override {
    units_.erase(key);
    if (index_) {
      const Index place = key;
      index_->remove_ids(faiss::IDSelectorArray(1, &place));
    }
  }

  std::vector<int64_t> search(std::span<const float> unit, size_t count) override {
    count = std::min(count, units_.size());
    if (count == 0) {
      return {};
    }
    if (index_) {
      return search_in(*index_, unit, count);
    }
    std::vector<std::pair<float, int64_t>> scored;
    for (const auto& [key, other] : units_) {
      float dot = 0;
      for (size_t i = 0; i < dimensions_; ++i) {
        dot += unit[i] * other[i];
      }
      scored.emplace_back(-dot, key);
    }
    std::partial_sort(scored.begin(), scored.begin() + static_cast<std::ptrdiff_t>(count), scored.end());
    std::vector<int64_t> keys;
    for (size_t i = 0; i < count; ++i) {
      keys.push_back(scored[i].second);
    }
    return keys;
  }

 private:
  void train() {
    constexpr size_t growth = 4;
    constexpr double most_a_list = 39; // of training, and as many lists as the square root says
    const double count = static_cast<double>(units_.size());
    const auto lists = static_cast<size_t>(std::max(1.0, std::min(2 * std::sqrt(count), count / most_a_list)));
    index_ = make_index(dimensions_, fmt::format("IVF{},Flat", lists));
    set(*index_, "nprobe", std::max<size_t>(8, lists / 8));
    std::vector<float> all;
    std::vector<Index> places;
    for (const auto& [key, unit] : units_) {
      all.insert(all.end(), unit.begin(), unit.end());
      places.push_back(key);
    }
    index_->train(static_cast<Index>(places.size()), all.data());
    index_->add_with_ids(static_cast<Index>(places.size()), all.data(), places.data());
    next_training_ = units_.size() * growth;
  }

  const size_t dimensions_;
  size_t next_training_ = 2000;
  std::unordered_map<int64_t, std::vector<float>> units_;
  std::unique_ptr<faiss::Index> index_;
};

} // namespace

std::unique_ptr<Records> open_faiss(Address& address) {
  if (address.path.empty()) {
    fail(Kind::invalid, "[memory] faiss: needs a folder, as faiss:/path");
  }
  const std::string kind = address.take("index", "hnsw");
  const size_t exact = address.take_exact();
  MakeNearest make;
  if (kind == "hnsw") {
    make = [](size_t dimensions) { return std::make_unique<Hnsw>(dimensions); };
  } else if (kind == "ivf") {
    make = [](size_t dimensions) { return std::make_unique<Ivf>(dimensions); };
  } else {
    fail(Kind::invalid, "[memory] index of a faiss: store is hnsw or ivf; got {}", kind);
  }
  return std::make_unique<FileRecords>(address.path, std::move(make), exact);
}

} // namespace parallm
