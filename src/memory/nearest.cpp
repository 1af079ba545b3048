#include "memory/nearest.h"

#include "memory/similarity.h"

namespace parallm {

void NearestDocuments::add(const std::string& id, const std::vector<float>& embedding) {
  remove(id);
  if (embedding.empty()) {
    return;
  }
  auto& index = indexes_[embedding.size()];
  if (!index) {
    index = make_(embedding.size());
  }
  const int64_t key = next_key_++;
  index->add(key, unit(embedding));
  places_[id] = {embedding.size(), key};
  ids_[key] = id;
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
