// How memories (recall.h) are to be used, and how they were. Plain data, no tensors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace parallm {

constexpr int most_block_tokens = 64, most_top_k = 1 << 20;

struct RecallHow {
  int top_k = 16; // memories of each query, in each layer and head; 0: none
  bool contiguous = false; // memories stand before the sequence, at 0, 1, ...; else all at position 0
  bool by_dot = false; // the most similar by q.k; else by cosine
  std::optional<float> threshold; // of the cosine, -1 to 1: what isn't above is left out
  // Each chosen memory brings the others of its block: so many tokens of its text, counted from the text's first. What
  // the threshold leaves out brings none. 1 to 64; 1: memories come alone.
  int block_tokens = 1;
  std::vector<bool> layers; // which use memories; empty: all
  bool record = false; // tell what each query that gives a token attends to; changes no answer
  int record_from = 0; // first layer whose attention is told
  // Where the entropy of the next token is above, in nats, of the softmax of the model's logits, its position is
  // computed again with top_k + extra_k (Recall::more). 0: none is.
  float unsure_above = 0;
  int extra_k = 0;

  bool operator==(const RecallHow&) const = default;
};

/** How one memory was used, over the heads of the recorded layers. */
struct UsedMemory {
  int32_t memory; // its place among the row's memories, from 0
  float mass; // its part of attention, for each query the mean over heads and layers, 0 to 1; summed over queries
  float cosine; // the greatest with a query
  int32_t count; // how often a query's head chose it
};

/** What queries gave to their row's memories. */
struct MemoryUse {
  int queries = 0;
  float mass = 0; // of all memories; a query gives the rest of its 1 to its own sequence; summed over queries
  std::vector<UsedMemory> memories; // those that were chosen
};

/** What a memory got beyond what it gets of any prompt: its weight as a source. `background` (engine/background.h) is
 * the mean of a query; what a memory gets varies about that, and only twice as much says something: with SmolLM2 and 12
 * facts the right one was first in 12 of 12 cases then, whatever the top_k, positions and text between, but in 5 to 12
 * with the background once. */
inline float cited_mass(const UsedMemory& used, int queries, float background) {
  return std::max(0.0f, used.mass - 2 * static_cast<float>(queries) * background);
}

} // namespace parallm
