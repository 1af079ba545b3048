// What all layers of a flat step share: where its tokens are written, which
// keys each query reads, and RoPE's tables. Made once a step, on the host; the
// device arrays are made when a layer first asks. Engine thread only.
#pragma once

#include "kv/cache.h"

#include <map>
#include <utility>

namespace parallm {

/** Sequences that attend in one call of MLX's attention: all decoding ones,
 * padded to the longest, or one prefill. */
struct Reading {
  int rows; // sequences
  int queries; // tokens of each
  int keys; // of each
  std::vector<int> tokens; // [rows*queries] their places in the step
  mx::array slots; // int32 [rows*keys]: where the keys lie in the pool, block *
                   // block_size + place
  bool causal; // query i sees all but the last queries-1-i keys; else `mask`
               // says, else all
  std::optional<mx::array> mask; // bool [rows,1,queries,keys]
};

class Step {
 public:
  Step(std::vector<Span> spans, int block_size, int blocks);

  int tokens() const {
    return tokens_;
  }
  /** One more than the greatest block id. */
  int blocks_used() const {
    return blocks_used_;
  }

  /** cos and sin [T, dims/2] of the step's tokens. */
  const std::pair<mx::array, mx::array>& rotation(const Rope& rope);

  // For kernels/cpu's paged attention.
  const mx::array& spans(); // int32 [R,3]: first, count, offset
  const mx::array& table(); // int32 [R,width]: block ids

  // For MLX's ops.
  const mx::array& write_slots(); // int32 [T]
  const std::vector<Reading>& readings(int window);
  /** The place of each of the step's tokens in the readings' outputs laid one
   * after another; nothing where they are in the step's own order. */
  const std::optional<mx::array>& order(int window);

 private:
  struct Plan {
    std::vector<Reading> readings;
    std::optional<mx::array> order;
  };

  int slot(const Span& span, int position) const;
  const Plan& plan(int window);
  Reading decoding(const std::vector<const Span*>& spans, int window) const;
  Reading prefilling(const Span& span, int window) const;

  std::vector<Span> spans_;
  int block_size_;
  int tokens_ = 0;
  int blocks_used_ = 0;
  std::map<const Rope*, std::pair<mx::array, mx::array>> rotations_;
  std::map<int, Plan> plans_; // by window
  std::optional<mx::array> spans_array_;
  std::optional<mx::array> table_;
  std::optional<mx::array> write_slots_;
};

} // namespace parallm
