#include "engine/blocks.h"

#include "base/error.h"

#include <functional>

namespace parallm {

Blocks::Blocks(int count) : blocks_(count) {
  free_.reserve(count);
  for (int32_t block = count - 1; block >= 0; --block) {
    free_.push_back(block);
  }
}

std::optional<int32_t> Blocks::take() {
  int32_t block;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else if (!idle_.empty()) {
    block = idle_.front();
    idle_.pop_front();
    drop(blocks_[block]);
  } else {
    return std::nullopt;
  }
  blocks_[block].holds = 1;
  return block;
}

void Blocks::release(int32_t number) {
  Block& block = blocks_[number];
  check(block.holds > 0, "a block is released once for each hold");
  if (--block.holds > 0) {
    return;
  }
  if (block.prefix) {
    block.idle = idle_.insert(idle_.end(), number);
  } else {
    free_.push_back(number);
  }
}

void Blocks::release(std::vector<int32_t>& table) {
  while (!table.empty()) {
    release(table.back());
    table.pop_back();
  }
}

std::optional<int32_t> Blocks::adopt(PrefixKey& key, std::span<const int32_t> tokens, const std::string& salt) {
  auto found = cache_.find(prefix(key, tokens, salt));
  if (found == cache_.end()) {
    return std::nullopt;
  }
  Block& block = blocks_[found->second.block];
  if (block.holds++ == 0) {
    idle_.erase(block.idle);
  }
  key = found->second.key;
  return found->second.block;
}

void Blocks::enter(int32_t number, PrefixKey& key, std::span<const int32_t> tokens, const std::string& salt) {
  Block& block = blocks_[number];
  check(block.holds > 0 && !block.prefix, "a block is entered once, held");
  auto [entry, fresh] = cache_.try_emplace(prefix(key, tokens, salt), Cached{number, PrefixKey{last_key_ + 1}});
  if (fresh) {
    ++last_key_;
    block.prefix = &entry->first;
  }
  key = entry->second.key;
}

void Blocks::forget() {
  cache_.clear();
  for (Block& block : blocks_) {
    block.prefix = nullptr;
  }
  free_.insert(free_.end(), idle_.begin(), idle_.end());
  idle_.clear();
}

void Blocks::verify(std::span<const std::vector<int32_t>* const> tables) const {
  std::vector<int> holds(blocks_.size(), 0);
  for (const auto* table : tables) {
    for (int32_t block : *table) {
      ++holds.at(block);
    }
  }
  std::vector<int> listed(blocks_.size(), 0);
  for (int32_t block : free_) {
    ++listed.at(block);
    check(!blocks_[block].prefix, "a free block is not cached");
  }
  for (int32_t block : idle_) {
    ++listed.at(block);
    check(blocks_[block].prefix, "an idle block is cached");
  }
  size_t cached = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    check(blocks_[i].holds == holds[i], "a block's holds are its holders");
    check(listed[i] == (holds[i] == 0), "a block is free once or held, not both");
    if (blocks_[i].prefix) {
      ++cached;
      auto entry = cache_.find(*blocks_[i].prefix);
      check(
          entry != cache_.end() && entry->second.block == static_cast<int32_t>(i),
          "a cached block is found under its prefix");
    }
  }
  check(cached == cache_.size(), "the cache holds cached blocks only");
}

Blocks::Prefix Blocks::prefix(PrefixKey before, std::span<const int32_t> tokens, const std::string& salt) {
  return {before, before == PrefixKey::start ? salt : std::string(), {tokens.begin(), tokens.end()}};
}

// Only picks the bucket: equality decides. The mixing step is splitmix64's
// (Steele et al., OOPSLA 2014).
size_t Blocks::PrefixHash::operator()(const Prefix& prefix) const {
  uint64_t hash = std::hash<std::string>()(prefix.salt);
  auto mix = [&hash](uint64_t value) {
    hash = (hash ^ value) + 0x9E3779B97F4A7C15;
    hash = (hash ^ (hash >> 30)) * 0xBF58476D1CE4E5B9;
    hash = (hash ^ (hash >> 27)) * 0x94D049BB133111EB;
    hash ^= hash >> 31;
  };
  mix(static_cast<uint64_t>(prefix.before));
  for (int32_t token : prefix.tokens) {
    mix(static_cast<uint32_t>(token));
  }
  return hash;
}

void Blocks::drop(Block& block) {
  const Prefix* prefix = block.prefix;
  block.prefix = nullptr;
  cache_.erase(cache_.find(*prefix));
}

} // namespace parallm
