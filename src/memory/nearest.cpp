#include "memory/nearest.h"

#include "memory/similarity.h"

namespace parallm {

void NearestDocuments::add(const std::vector<Item>& items) {
  struct Batch {
    std::vector<int64_t> keys;
    std::vector<float> units;
  };
  std::map<size_t, Batch> batches; // by dimensions
  for (const Item& item : items) {
    remove(item.id);
    const size_t dimensions = item.embedding.size();
    if (dimensions > 0) {
      const int64_t key = next_key_++;
      places_[item.id] = {dimensions, key};
      ids_[key] = item.id;
      const std::vector<float> vector = unit(item.embedding);
      batches[dimensions].keys.push_back(key);
      batches[dimensions].units.insert(batches[dimensions].units.end(), vector.begin(), vector.end());
    }
  }
  for (const auto& [dimensions, batch] : batches) {
    auto& index = indexes_[dimensions];
    if (!index) {
      index = make_(dimensions);
    }
    index->add(batch.keys, batch.units);
  }
}

void NearestDocuments::remove(const std::string& id) {
  const auto place = places_.extract(id);
  if (place) {
    indexes_.at(place.mapped().dimensions)->remove(place.mapped().key);
    ids_.erase(place.mapped().key);
  }
}

std::vector<std::string> NearestDocuments::search(const std::vector<float>& embedding, size_t count) {
  std::vector<std::string> ids;
  const auto index = indexes_.find(embedding.size());
  if (index == indexes_.end()) {
    return ids;
  }
  for (const int64_t key : index->second->search(unit(embedding), count)) {
    const auto id = ids_.find(key);
    if (id != ids_.end()) {
      ids.push_back(id->second);
    }
  }
  return ids;
}

} // namespace parallm
