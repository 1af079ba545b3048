// How memories (recall.h) are used. Plain data, no tensors.
#pragma once

#include <optional>
#include <vector>

namespace parallm {

struct RecallHow {
  int top_k = 16; // memories of each query, in each layer and head; 0: none
  bool contiguous = false; // memories stand before the sequence, at 0, 1, ...; else all at position 0
  bool by_dot = false; // the most similar by q.k; else by cosine
  std::optional<float> threshold; // of the cosine, -1 to 1: what isn't above is left out
  std::vector<bool> layers; // which use memories; empty: all
};

} // namespace parallm
