// What attention_simd.cpp does with a tile of positions: scores of some queries, the weights that these become, and the
// sums of the values under them. Included once for each instruction set, after hwy/foreach_target.h.
#include "kernels/cpu/attention.h"
#include "kernels/cpu/simd-inl.h"

#include <algorithm>
#include <limits>
#include <utility>

#if defined(PARALLM_ATTENTION_TILE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef PARALLM_ATTENTION_TILE_INL_H
#undef PARALLM_ATTENTION_TILE_INL_H
#else
#define PARALLM_ATTENTION_TILE_INL_H
#endif

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr size_t tile_width = 32; // positions
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

enum Scratch { scratch_head, scratch_item, scratch_segments };

/** Queries [first, first + count) of a span, all heads of one kv head. */
struct Item {
  size_t span, first, count, kv_head;
};

/** An item's sums over some positions; a row is one head of one query. */
struct Sums {
  size_t rows, v_dim; // that rounded up to whole vectors
  float* top; // [rows] greatest score so far
  float* mass; // [rows] sum of exp(score - top)
  float* out; // [rows, v_dim], not yet divided by mass

  static size_t rows_of(const AttentionJob& job, const Item& item) {
    return item.count * (job.heads / job.kv_heads);
  }
  static size_t size(const AttentionJob& job, const Item& item) {
    const size_t rows = rows_of(job, item);
    return 2 * round_up(rows, 16) + rows * round_up(job.v_dim, lanes); // keeps what follows aligned
  }

  /** Of no position, in `size` floats. */
  Sums(const AttentionJob& job, const Item& item, float* memory)
      : rows(rows_of(job, item)),
        v_dim(round_up(job.v_dim, lanes)),
        top(memory),
        mass(top + round_up(rows, 16)),
        out(mass + round_up(rows, 16)) {}

  void clear() {
    std::fill_n(top, rows, minus_infinity);
    std::fill_n(mass, rows, 0.0f);
    std::fill_n(out, rows * v_dim, 0.0f);
  }
};

/** What an item keeps. */
struct State {
  size_t rows, dim, v_dim; // dims rounded up to whole vectors
  Sums total;
  Sums sums; // of a segment
  float* q; // [rows, dim], rotated and scaled
  float* k; // [tile_width, dim]
  float* v; // [tile_width, v_dim]
  float* scores; // [rows, tile_width]

  State(const AttentionJob& job, const Item& item)
      : rows(Sums::rows_of(job, item)),
        dim(round_up(job.dim, lanes)),
        v_dim(round_up(job.v_dim, lanes)),
        total(job, item, memory(job, item)),
        sums(job, item, total.top + Sums::size(job, item)) {
    float* next = total.top + 2 * Sums::size(job, item);
    const auto take = [&](size_t count) { return std::exchange(next, next + count); };
    scores = take(rows * tile_width);
    q = take(rows * dim);
    k = take(tile_width * dim);
    v = take(tile_width * v_dim);
  }

 private:
  float* memory(const AttentionJob& job, const Item& item) const {
    const size_t tiles = rows * (dim + tile_width) + tile_width * (dim + v_dim);
    return thread_scratch(scratch_item, 2 * Sums::size(job, item) + tiles);
  }
};

/** The positions [begin, end) that a query sees. */
struct Range {
  size_t begin, end;
};

inline Range visible(const AttentionJob& job, size_t position) {
  return {job.first_seen(position), position + 1};
}

/** The part of `range` in the tile that begins at `base`, counted from base. */
inline Range within(Range range, size_t base) {
  const size_t begin = std::max(range.begin, base) - base;
  const size_t end = std::min(range.end, base + tile_width);
  return end > base + begin ? Range{begin, end - base} : Range{0, 0};
}

#if HWY_TARGET == HWY_SCALAR
template <class P>
void score_rows(Rows queries, size_t rows, const P* keys, size_t dim, size_t many, float* scores) {
  for (size_t row = 0; row < rows; row++) {
    std::fill_n(scores + row * tile_width, many, 0.0f);
  }
  multiply(queries, rows, Dense<P>{keys, dim}, many, dim, dim, scores, tile_width);
}
#else
/** Scores of MR queries for up to a vector of keys, which follow one another. Sums have the order of `tile`'s, but they
 * are turned into a vector together. */
template <int MR, class P>
HWY_INLINE void score_vector(Rows queries, const P* keys, size_t dim, size_t many, float* scores) {
  constexpr size_t blocks = lanes / 4;
  V sets[MR][4]; // of every fourth key
  for (size_t set = 0; set < 4; set++) {
    V acc[MR][blocks];
    const P* key[blocks];
    for (size_t b = 0; b < blocks; b++) {
      key[b] = keys + std::min(4 * b + set, many - 1) * dim;
      for (int m = 0; m < MR; m++) {
        acc[m][b] = hn::Zero(F32());
      }
    }
    for (size_t i = 0; i < dim; i += lanes) {
      V k[blocks];
      for (size_t b = 0; b < blocks; b++) {
        k[b] = load(key[b] + i);
      }
      for (int m = 0; m < MR; m++) {
        const V q = load(queries.data + m * queries.stride + i);
        for (size_t b = 0; b < blocks; b++) {
          acc[m][b] = hn::MulAdd(q, k[b], acc[m][b]);
        }
      }
    }
    for (int m = 0; m < MR; m++) {
      sets[m][set] = fold_blocks(acc[m]);
    }
  }
  for (int m = 0; m < MR; m++) {
    const V sums = sum_blocks(sets[m][0], sets[m][1], sets[m][2], sets[m][3]);
    if (many == lanes) {
      store(sums, scores + m * tile_width);
    } else {
      float first[lanes];
      store(sums, first);
      std::copy_n(first, many, scores + m * tile_width);
    }
  }
}

template <int MR, class P>
HWY_NOINLINE void score_keys(Rows queries, const P* keys, size_t dim, size_t many, float* scores) {
  for (size_t j = 0; j < many; j += lanes) {
    score_vector<MR>(queries, keys + j * dim, dim, std::min(lanes, many - j), scores + j);
  }
}

/** scores[row * tile_width + j] of `many` keys that follow one another. */
template <class P>
void score_rows(Rows queries, size_t rows, const P* keys, size_t dim, size_t many, float* scores) {
  for (size_t row = 0; row < rows; row += 4) {
    const auto run = rows - row == 1 ? &score_keys<1, P>
        : rows - row == 2            ? &score_keys<2, P>
        : rows - row == 3            ? &score_keys<3, P>
                                     : &score_keys<4, P>;
    const Rows from{queries.data + row * queries.stride, queries.stride};
    run(from, keys, dim, many, scores + row * tile_width);
  }
}
#endif

inline float exp_of(float x) {
  return hn::GetLane(hn::Exp(F32(), hn::Set(F32(), x)));
}

/** Whether any of a tile's part is among `chosen`, of the tile's positions. */
inline bool any_chosen(const bool* chosen, Range part) {
  return std::find(chosen + part.begin, chosen + part.end, true) != chosen + part.end;
}

/** A row's scores in a tile to weights exp(score - top); top, mass and out
 * follow a greater top. */
inline void soften(const AttentionJob& job, State& state, size_t row, Range part, const bool* chosen) {
  const F32 d;
  Sums& sums = state.sums;
  float* scores = state.scores + row * tile_width;
  if (chosen != nullptr && !any_chosen(chosen, part)) {
    std::fill(scores, scores + tile_width, 0.0f);
    return;
  }
  if (job.softcap > 0) {
    const V cap = hn::Set(d, job.softcap);
    for (size_t j = 0; j < tile_width; j += lanes) {
      const V s = hn::Div(load(scores + j), cap);
      store(hn::Mul(cap, hn::Tanh(d, s)), scores + j);
    }
  }
  std::fill(scores, scores + part.begin, minus_infinity);
  std::fill(scores + part.end, scores + tile_width, minus_infinity);
  for (size_t j = part.begin; chosen != nullptr && j < part.end; j++) {
    scores[j] = chosen[j] ? scores[j] : minus_infinity;
  }
  V greatest = load(scores);
  for (size_t j = lanes; j < tile_width; j += lanes) {
    greatest = hn::Max(greatest, load(scores + j));
  }
  const float before = sums.top[row];
  const float top = std::max(before, hn::GetLane(hn::MaxOfLanes(d, greatest)));
  V total = hn::Zero(d);
  for (size_t j = 0; j < tile_width; j += lanes) {
    const V p = hn::Exp(d, hn::Sub(load(scores + j), hn::Set(d, top)));
    total = hn::Add(total, p);
    store(p, scores + j);
  }
  if (top != before) {
    const float shrink = exp_of(before - top);
    sums.top[row] = top;
    sums.mass[row] *= shrink;
    float* out = sums.out + row * state.v_dim;
    for (size_t i = 0; i < state.v_dim; i += lanes) {
      store(hn::Mul(load(out + i), hn::Set(d, shrink)), out + i);
    }
  }
  sums.mass[row] += sum(total);
}

/** out[row] += weights . v for `Rows` rows that see the same part of a tile, `Vectors` vectors of Dv at a time. `v`:
 * the values from the part's begin on, `stride` apart. */
template <int Rows, int Vectors, class P>
HWY_INLINE size_t add_values(State& state, size_t row, Range part, const P* values, size_t stride, size_t i) {
  for (; i + Vectors * lanes <= state.v_dim; i += Vectors * lanes) {
    V acc[Rows][Vectors];
    float* out = state.sums.out + row * state.v_dim + i;
    const float* weights = state.scores + row * tile_width;
    for (int r = 0; r < Rows; r++) {
      for (int c = 0; c < Vectors; c++) {
        acc[r][c] = load(out + r * state.v_dim + c * lanes);
      }
    }
    for (size_t j = part.begin; j < part.end; j++) {
      V v[Vectors];
      for (int c = 0; c < Vectors; c++) {
        v[c] = load(values + (j - part.begin) * stride + i + c * lanes);
      }
      for (int r = 0; r < Rows; r++) {
        const V weight = hn::Set(F32(), weights[r * tile_width + j]);
        for (int c = 0; c < Vectors; c++) {
          acc[r][c] = hn::MulAdd(weight, v[c], acc[r][c]);
        }
      }
    }
    for (int r = 0; r < Rows; r++) {
      for (int c = 0; c < Vectors; c++) {
        store(acc[r][c], out + r * state.v_dim + c * lanes);
      }
    }
  }
  return i;
}

template <int Rows, class P>
void add_values(State& state, size_t row, Range part, const P* values, size_t stride) {
  const size_t i = add_values < Rows, Rows <= (many_registers ? 3 : 1) ? 4 : 2 > (state, row, part, values, stride, 0);
  add_values<Rows, 1>(state, row, part, values, stride, i);
}

/** The same for `rows` rows from `row` on, which see parts of their own, `part_of(row)`. */
template <class P, class PartOf>
void add_all_values(State& state, const P* values, size_t stride, Range piece, const PartOf& part_of) {
  const auto seen = [&](size_t row) {
    const Range part = part_of(row);
    return Range{
        std::max(part.begin, piece.begin), std::max(std::min(part.end, piece.end), std::max(part.begin, piece.begin))};
  };
  for (size_t row = 0; row < state.rows;) {
    const Range part = seen(row);
    const auto alike = [&](size_t many) {
      for (size_t next = row + 1; next < row + many; next++) {
        const Range other = next < state.rows ? seen(next) : Range{1, 0};
        if (part.begin != other.begin || part.end != other.end) {
          return false;
        }
      }
      return true;
    };
    const P* from = values + (part.begin - piece.begin) * stride;
    if (alike(4)) {
      add_values<4>(state, row, part, from, stride);
      row += 4;
    } else if (alike(3)) {
      add_values<3>(state, row, part, from, stride);
      row += 3;
    } else if (alike(2)) {
      add_values<2>(state, row, part, from, stride);
      row += 2;
    } else {
      add_values<1>(state, row, part, from, stride);
      row++;
    }
  }
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#endif
