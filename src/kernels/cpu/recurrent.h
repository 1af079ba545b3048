// The work of recurrent_ops.h, without MLX. Inputs of tokens have the strides,
// in elements, that their array has over rows and tokens; all else is
// row-contiguous.
#pragma once

#include "kernels/cpu/elements.h"

namespace parallm::cpu {

/** [B,L,...], the last axes packed. */
struct Tokens {
  const void* data = nullptr;
  int64_t row = 0; // from a row to the next
  int64_t token = 0; // from a token to the next

  template <class T>
  const T* at(size_t b, size_t t) const {
    return static_cast<const T*>(data) + static_cast<int64_t>(b) * row + static_cast<int64_t>(t) * token;
  }
};

struct ConvJob {
  size_t batch, length, channels, kernel; // B, L, C, K
  Tokens x; // [B,L,C]
  Type type; // of x, the states and out
  const float* weight; // [K,C]
  const float* bias; // [C] or null
  bool silu;
  const void* state; // [B,K-1,C]
  void* next_state;
  void* out; // [B,L,C]
};

struct RecurrenceJob {
  size_t batch, length, heads, groups, key_dim, value_dim; // B, L, H, G, N, P
  Tokens q, k; // [B,L,G,N]
  Tokens read, write; // [B,L,G,N] or null
  Tokens v; // [B,L,H,P]
  Type type; // of q, k, read, write, v and out
  Tokens log_decay; // float [B,L,H], or [B,L,H,N]
  bool decay_by_key;
  Tokens beta; // float [B,L,H] or null
  bool delta;
  const float* skip; // [H] or null
  const float* state; // [B,H,P,N]
  float* next_state; // may be `state`
  void* out; // [B,L,H,P]
};

struct SelectiveScanJob {
  size_t batch, length, channels, state_dim; // B, L, C, N
  Tokens x; // [B,L,C]
  Tokens b, c; // [B,L,N]
  Type type; // of x, b, c and out
  Tokens dt; // float [B,L,C]
  const float* a; // [C,N]
  const float* skip; // [C]
  const float* state; // [B,C,N]
  float* next_state; // may be `state`
  void* out; // [B,L,C]
};

struct LinearScanJob {
  size_t batch, length, channels;
  Tokens log_decay, x; // float [B,L,C]
  const float* state; // [B,C]
  float* next_state; // may be `state`
  float* out; // [B,L,C]
};

void run_conv(const ConvJob& job);
void run_recurrence(const RecurrenceJob& job);
void run_selective_scan(const SelectiveScanJob& job);
void run_linear_scan(const LinearScanJob& job);

} // namespace parallm::cpu
