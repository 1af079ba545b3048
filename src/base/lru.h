// Values by name, as many as may be kept: the last used stay. One thread at a time.
#pragma once

#include <list>
#include <string>
#include <unordered_map>
#include <utility>

namespace parallm {

template <typename Value>
class Lru {
 public:
  /** The values may weigh so much together; one of them may weigh more alone. */
  explicit Lru(size_t most) : most_(most) {}

  /** Null where there is none; else it is the last used now. Good until the next put. */
  Value* find(const std::string& name) {
    const auto found = places_.find(name);
    if (found == places_.end()) {
      return nullptr;
    }
    entries_.splice(entries_.begin(), entries_, found->second);
    return &found->second->value;
  }

  /** In place of one of this name. */
  void put(const std::string& name, Value value, size_t weight = 1) {
    if (const auto known = places_.find(name); known != places_.end()) {
      erase(known->second);
    }
    entries_.push_front({name, std::move(value), weight});
    places_[name] = entries_.begin();
    weight_ += weight;
    while (weight_ > most_ && entries_.size() > 1) {
      erase(std::prev(entries_.end()));
    }
  }

  size_t weight() const {
    return weight_;
  }
  size_t size() const {
    return entries_.size();
  }

 private:
  struct Entry {
    std::string name;
    Value value;
    size_t weight;
  };
  using Place = typename std::list<Entry>::iterator;

  void erase(Place place) {
    weight_ -= place->weight;
    places_.erase(place->name);
    entries_.erase(place);
  }

  const size_t most_;
  size_t weight_ = 0;
  std::list<Entry> entries_; // the last used first
  std::unordered_map<std::string, Place> places_;
};

} // namespace parallm
