// Which KV blocks are free, who holds the others, and which of them can be
// shared: reference counts and the prefix cache. A full block can be entered in
// the cache under (the key of the prefix before it, its tokens): keys are
// numbers given once and never again, so that a key stands for exactly one salt
// and token sequence and equal keys need no trust in a hash. Sharing is by
// whole blocks, so nothing is ever copied. Cached blocks that nobody holds stay
// adoptable until `take` needs them, least recently used first. Numbers only,
// no tensor. Engine thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace parallm {

/** Stands for a salt and all tokens up to a block's end. `start`: nothing yet.
 */
enum class PrefixKey : uint64_t { start = 0 };

class Blocks {
 public:
  explicit Blocks(int count);

  /** A block for its taker alone; empty where none is free. */
  std::optional<int32_t> take();

  /** Gives one hold back. */
  void release(int32_t block);

  /** Gives a whole table back, last block first: a prefix must outlive what
   * continues it, or that is never found. */
  void release(std::vector<int32_t>& table);

  /** A hold on the cached block whose `tokens` follow `key`, which moves on
   * past it; empty where there is none. */
  std::optional<int32_t> adopt(PrefixKey& key, std::span<const int32_t> tokens, const std::string& salt);

  /** Caches a held, full block. `key` moves on past it. Where an equal prefix
   * is cached already, that one stays. */
  void enter(int32_t block, PrefixKey& key, std::span<const int32_t> tokens, const std::string& salt);

  /** Empties the prefix cache; holds stay. */
  void forget();

  int total() const {
    return static_cast<int>(blocks_.size());
  }
  /** What `take` can give, cached blocks that nobody holds included. */
  int free() const {
    return static_cast<int>(free_.size() + idle_.size());
  }
  /** Cached blocks that nobody holds. */
  int idle() const {
    return static_cast<int>(idle_.size());
  }

  /** Throws where the books don't agree with each other or with `tables`, all
   * the holds there are. */
  void verify(std::span<const std::vector<int32_t>* const> tables) const;

 private:
  /** The salt is empty but in a sequence's first block. */
  struct Prefix {
    PrefixKey before;
    std::string salt;
    std::vector<int32_t> tokens;
    bool operator==(const Prefix&) const = default;
  };
  struct PrefixHash {
    size_t operator()(const Prefix& prefix) const;
  };
  struct Cached {
    int32_t block;
    PrefixKey key;
  };
  struct Block {
    int holds = 0;
    const Prefix* prefix = nullptr; // its key in cache_, null: not cached
    std::list<int32_t>::iterator idle; // its place in idle_, where cached and not held
  };
  static Prefix prefix(PrefixKey before, std::span<const int32_t> tokens, const std::string& salt);
  void drop(Block& block);

  std::vector<Block> blocks_;
  std::vector<int32_t> free_;
  std::list<int32_t> idle_; // least recently used first
  std::unordered_map<Prefix, Cached, PrefixHash> cache_;
  uint64_t last_key_ = 0;
};

} // namespace parallm
