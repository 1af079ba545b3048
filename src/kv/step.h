// What all layers of a flat step share: where its tokens are written, which
// keys each query reads, which sequences a recurrence runs together, and RoPE's
// tables. Made once a step, on the host; the device arrays are made when a layer
// first asks. Engine thread only.
#pragma once

#include "kv/cache.h"

#include <compare>
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

/** The sequences that have one token, for kernels/cuda's attention. */
struct DecodingRows {
  mx::array tokens; // int32 [B] their tokens' places in the step
  mx::array positions; // int32 [B] and in their sequences
  mx::array table; // int32 [B,width]: block ids
};

/** Which of a sequence's positions up to its own a query sees. */
struct View {
  int window = 0; // see Attention::window
  int chunk = 0; // see Attention::chunk

  int first_seen(int position) const;
  auto operator<=>(const View&) const = default;
};

/** Sequences whose recurrence runs in one call: all that have one token, or one
 * prefill. */
struct Run {
  int rows; // sequences
  int length; // tokens of each
  mx::array tokens; // int32 [rows*length] their places in the step
  mx::array slots; // int32 [rows] where their states lie
  mx::array before; // int32 [rows] the same, but the slot past the last, which holds zeros, for a sequence at its start
};

class Step {
 public:
  Step(std::vector<Span> spans, int block_size, int blocks);

  int tokens() const {
    return tokens_;
  }

  /** int32 [T] in the sequences. */
  const mx::array& positions();
  /** cos and sin [T, dims/2] of the step's tokens. */
  const std::pair<mx::array, mx::array>& rotation(const Rope& rope);
  /** x [T,H,D] at the tokens' positions; null: as it is. */
  mx::array rotate(const mx::array& x, const Rope* rope);
  /** q [T,H,D] in float32, rotated. */
  mx::array rotated(const mx::array& q, const Attention& how);

  // For kernels/cpu's paged attention.
  const mx::array& spans(); // int32 [R,3]: first, count, offset
  const mx::array& table(); // int32 [R,width]: block ids

  // For kernels/cuda's.
  const std::optional<DecodingRows>& decoding_rows();
  /** All sequences have one token. */
  bool only_decodes() const {
    return static_cast<int>(spans_.size()) == tokens_;
  }
  /** The most positions that one of their tokens sees. */
  int most_seen(View view) const;

  // For MLX's ops.
  const mx::array& write_slots(); // int32 [T]
  /** A pool [blocks*block_size,...] grows by doubling up to its capacity, as higher block ids come into use. */
  void grow(mx::array& pool) const;
  /** x [T,...] to the tokens' slots in a pool, which grows. */
  void write(mx::array& pool, const mx::array& x);
  /** `decoding`: of the decoding sequences too, else of the prefills alone. */
  const std::vector<Reading>& readings(View view, bool decoding = true);
  /** Each sequence by itself, in the step's order: what is computed of one doesn't depend on the others. */
  const std::vector<Reading>& sequences();
  /** The place of each of the step's tokens in the readings' (or runs') outputs
   * laid one after another; nothing where they are in the step's own order. */
  const std::optional<mx::array>& order();

  // For recurrent layers.
  const std::vector<Run>& runs(int slots);

 private:
  /** Decoding spans together, then each prefill. */
  std::vector<std::vector<const Span*>> groups() const;
  int slot(const Span& span, int position) const;
  Reading decoding(const std::vector<const Span*>& spans, View view) const;
  Reading prefilling(const Span& span, View view) const;

  std::vector<Span> spans_;
  int block_size_;
  int capacity_; // blocks of a pool
  int tokens_ = 0;
  int blocks_used_ = 0; // one more than the greatest block id
  std::map<const Rope*, std::pair<mx::array, mx::array>> rotations_;
  std::map<std::pair<View, bool>, std::vector<Reading>> readings_;
  std::vector<Reading> sequences_;
  std::vector<Run> runs_;
  std::optional<std::optional<mx::array>> order_;
  std::optional<mx::array> positions_;
  std::optional<mx::array> spans_array_;
  std::optional<mx::array> table_;
  std::optional<std::optional<DecodingRows>> decoding_rows_;
  std::optional<mx::array> write_slots_;
};

} // namespace parallm
