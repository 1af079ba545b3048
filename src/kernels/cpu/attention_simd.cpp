// Attention over a paged cache with the online softmax (Milakov and Gimelshein, arXiv 1805.02867; tiled as in
// FlashAttention, arXiv 2205.14135). A query's positions are taken in tiles that begin at multiples of `tile_width` in
// its own sequence, and these in segments, whose sums are added up in their order. So its sums have one order whichever
// queries share the loads, and whichever threads take the segments: where few queries leave threads idle, each segment
// is a thread's work of its own (as in Flash-Decoding, Dao et al., 2023).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/attention.h"
#include "kernels/cpu/simd-inl.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr size_t tile_width = 32; // positions
constexpr size_t segment_width = 128; // positions, whole tiles
constexpr size_t tile_rows = 64; // query heads of one kv head that share loads, about
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

enum Scratch { scratch_head, scratch_item, scratch_segments };

/** Rotates the first rope_dims of one head of token t. */
HWY_NOINLINE void rotate(const AttentionJob& job, size_t t, float* x) {
  const size_t half = job.rope_dims / 2;
  const float* cos = job.cos + t * half;
  const float* sin = job.sin + t * half;
  const size_t pair = job.rope_traditional ? 1 : half;
  const size_t step = job.rope_traditional ? 2 : 1;
  for (size_t i = 0; i < half; i++) {
    const float c = cos[i];
    const float s = sin[i];
    float& first = x[i * step];
    float& second = x[i * step + pair];
    const float a = first, b = second;
    first = a * c - b * s;
    second = a * s + b * c;
  }
}

/** Pools of floats. */
template <class P>
struct Floats {
  using Element = P;
  static constexpr bool coded = false;
  static void write(const float* x, size_t dim, void* pool, size_t place) {
    narrow(x, dim, static_cast<P*>(pool) + place * dim);
  }
  static void read(const void* pool, size_t place, size_t dim, float* x, size_t padded) {
    widen(static_cast<const P*>(pool) + place * dim, dim, x, padded);
  }
};

/** Pools of codes (attention.h). */
template <int Bits>
struct Codes {
  using Element = float; // never read as such
  static constexpr bool coded = true;
  static constexpr int most = (1 << Bits) - 1;
  using D8 = hn::Rebind<uint8_t, F32>;
  using D32 = hn::RebindToSigned<U32>;

  static auto code(const float* x, V least, V per_code) {
    const V code = hn::Mul(hn::Sub(load(x), least), per_code);
    const V bounded = hn::Min(hn::Max(code, hn::Zero(F32())), hn::Set(F32(), float(most)));
    return hn::NearestInt(bounded);
  }

  static void write(const float* x, size_t dim, void* pool, size_t place) {
    const size_t group = kv_group(dim), groups = dim / group;
    auto* row = static_cast<uint8_t*>(pool) + place * kv_code_row(dim, Bits);
    auto* codes = row + groups * 2 * sizeof(float);
    for (size_t g = 0; g < groups; g++, x += group, codes += group * Bits / 8) {
      V low = load(x), high = low;
      for (size_t i = lanes; i < group; i += lanes) {
        low = hn::Min(low, load(x + i));
        high = hn::Max(high, load(x + i));
      }
      const float least = hn::GetLane(hn::MinOfLanes(F32(), low));
      const float scale = (hn::GetLane(hn::MaxOfLanes(F32(), high)) - least) / most;
      const float head[2] = {scale, least};
      std::memcpy(row + g * sizeof(head), head, sizeof(head));
      const V from = hn::Set(F32(), least), per_code = hn::Set(F32(), scale > 0 ? 1 / scale : 0);
      if constexpr (Bits == 8) {
        for (size_t i = 0; i < group; i += lanes) {
          hn::StoreU(hn::DemoteTo(D8(), code(x + i, from, per_code)), D8(), codes + i);
        }
      } else {
        for (size_t i = 0; i < group / 2; i += lanes) {
          const auto both =
              hn::Or(code(x + i, from, per_code), hn::ShiftLeft<4>(code(x + group / 2 + i, from, per_code)));
          hn::StoreU(hn::DemoteTo(D8(), both), D8(), codes + i);
        }
      }
    }
  }

  static void read(const void* pool, size_t place, size_t dim, float* x, size_t) {
    const size_t group = kv_group(dim), groups = dim / group;
    const auto* row = static_cast<const uint8_t*>(pool) + place * kv_code_row(dim, Bits);
    const auto* codes = row + groups * 2 * sizeof(float);
    for (size_t g = 0; g < groups; g++, x += group, codes += group * Bits / 8) {
      float head[2];
      std::memcpy(head, row + g * sizeof(head), sizeof(head));
      const V scale = hn::Set(F32(), head[0]), least = hn::Set(F32(), head[1]);
      const auto put = [&](auto code, float* to) { store(hn::MulAdd(hn::ConvertTo(F32(), code), scale, least), to); };
      if constexpr (Bits == 8) {
        for (size_t i = 0; i < group; i += lanes) {
          put(hn::PromoteTo(D32(), hn::LoadU(D8(), codes + i)), x + i);
        }
      } else {
        for (size_t i = 0; i < group / 2; i += lanes) {
          const auto both = hn::PromoteTo(D32(), hn::LoadU(D8(), codes + i));
          put(hn::And(both, hn::Set(D32(), 15)), x + i);
          put(hn::ShiftRight<4>(both), x + group / 2 + i);
        }
      }
    }
  }
};

/** Writes the keys, rotated, and the values of a token of a span to the pools.
 */
template <class T, class Pool>
void write_token(const AttentionJob& job, size_t span, size_t i) {
  const size_t t = job.spans[span * 3] + i;
  const size_t position = job.spans[span * 3 + 2] + i;
  const size_t G = job.kv_heads, D = job.dim, Dv = job.v_dim;
  float* head = thread_scratch(scratch_head, round_up(std::max(D, Dv), lanes));
  for (size_t g = 0; g < G; g++) {
    const size_t place = job.place(span, position, g);
    widen(static_cast<const T*>(job.k) + (t * G + g) * D, D, head, 0);
    rotate(job, t, head);
    Pool::write(head, D, job.k_pool, place);
    widen(static_cast<const T*>(job.v) + (t * G + g) * Dv, Dv, head, 0);
    Pool::write(head, Dv, job.v_pool, place);
  }
}

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

Range visible(const AttentionJob& job, size_t position) {
  return {job.first_seen(position), position + 1};
}

/** The part of `range` in the tile that begins at `base`, counted from base. */
Range within(Range range, size_t base) {
  const size_t begin = std::max(range.begin, base) - base;
  const size_t end = std::min(range.end, base + tile_width);
  return end > base + begin ? Range{begin, end - base} : Range{0, 0};
}

template <class T>
void load_queries(const AttentionJob& job, const Item& item, State& state) {
  const size_t heads = job.heads / job.kv_heads;
  for (size_t row = 0; row < state.rows; row++) {
    const size_t t = job.spans[item.span * 3] + item.first + row / heads;
    const size_t h = item.kv_head * heads + row % heads;
    float* q = state.q + row * state.dim;
    widen(static_cast<const T*>(job.q) + (t * job.heads + h) * job.dim, job.dim, q, state.dim);
    rotate(job, t, q);
    if (job.rotated != nullptr) {
      std::copy_n(q, job.dim, job.rotated + (t * job.heads + h) * job.dim);
    }
    const V scale = hn::Set(F32(), job.scale);
    for (size_t i = 0; i < state.dim; i += lanes) {
      store(hn::Mul(load(q + i), scale), q + i);
    }
  }
}

/** Positions of a tile that lie together in the pools: [begin, end), counted from the tile's base. */
struct Piece {
  size_t begin, end, place;
};

/** run(piece) for each block's part of a tile's part. */
template <class F>
void for_pieces(const AttentionJob& job, const Item& item, size_t base, Range part, const F& run) {
  for (size_t j = part.begin, end = 0; j < part.end; j = end) {
    end = std::min(part.end, j + job.block_size - (base + j) % job.block_size);
    run(Piece{j, end, job.place(item.span, base + j, item.kv_head)});
  }
}

template <class Pool>
void load_tile(const AttentionJob& job, const Item& item, size_t base, Range part, State& state) {
  for_pieces(job, item, base, part, [&](const Piece& piece) {
    size_t place = piece.place;
    for (size_t j = piece.begin; j < piece.end; j++, place++) {
      Pool::read(job.k_pool, place, job.dim, state.k + j * state.dim, state.dim);
      Pool::read(job.v_pool, place, job.v_dim, state.v + j * state.v_dim, state.v_dim);
    }
  });
}

/** Asks for the positions that lie in the next tile where a piece's lie in this one. */
HWY_INLINE void prefetch_next(
    const AttentionJob& job,
    const Item& item,
    size_t base,
    const Piece& piece,
    const void* pool,
    size_t row) {
  const size_t next = base + tile_width + piece.begin;
  const size_t last = job.spans[item.span * 3 + 2] + item.first + item.count; // past the item's positions
  if (next >= last) {
    return;
  }
  const auto* from = static_cast<const char*>(pool) + job.place(item.span, next, item.kv_head) * row;
  for (size_t i = 0; i < (piece.end - piece.begin) * row; i += 64) {
    __builtin_prefetch(from + i);
  }
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

/** A tile's scores and values straight from pools of floats. */
template <class P>
void score_pool(const AttentionJob& job, const Item& item, size_t base, Range part, State& state) {
  for_pieces(job, item, base, part, [&](const Piece& piece) {
    prefetch_next(job, item, base, piece, job.k_pool, job.dim * sizeof(P));
    const auto* k = static_cast<const P*>(job.k_pool) + piece.place * job.dim;
    const size_t many = piece.end - piece.begin;
    score_rows(Rows{state.q, state.dim}, state.rows, k, job.dim, many, state.scores + piece.begin);
  });
}

float exp_of(float x) {
  return hn::GetLane(hn::Exp(F32(), hn::Set(F32(), x)));
}

/** Whether any of a tile's part is among `chosen`, of the tile's positions. */
bool any_chosen(const bool* chosen, Range part) {
  return std::find(chosen + part.begin, chosen + part.end, true) != chosen + part.end;
}

/** A row's scores in a tile to weights exp(score - top); top, mass and out
 * follow a greater top. */
void soften(const AttentionJob& job, State& state, size_t row, Range part, const bool* chosen) {
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

template <class P, class Seen>
void add_pool(const AttentionJob& job, const Item& item, size_t base, Range part, State& state, const Seen& seen) {
  for_pieces(job, item, base, part, [&](const Piece& piece) {
    prefetch_next(job, item, base, piece, job.v_pool, job.v_dim * sizeof(P));
    const auto* v = static_cast<const P*>(job.v_pool) + piece.place * job.v_dim;
    add_all_values(state, v, job.v_dim, {piece.begin, piece.end}, seen);
  });
}

/** The positions that an item's queries see. */
Range visible(const AttentionJob& job, const Item& item) {
  const size_t position = job.spans[item.span * 3 + 2] + item.first;
  return {visible(job, position).begin, position + item.count};
}

/** The sums of an item's queries, which the state has, over one segment: of `all`, what is in [base, base + width). */
template <class Pool>
void attend_segment(const AttentionJob& job, const Item& item, State& state, size_t base) {
  const size_t heads = job.heads / job.kv_heads;
  const size_t position = job.spans[item.span * 3 + 2] + item.first;
  const Range all = visible(job, item);
  // Few rows read the pools' own numbers; more read them as floats, turned once.
  const bool direct = !Pool::coded && state.rows <= 8 && job.dim % lanes == 0 && job.v_dim % lanes == 0;
  const auto part_of = [&](size_t row, size_t base) { // a tile lies within one sparse block
    const size_t at = position + row / heads;
    const bool seen = job.sees_block(item.kv_head * heads + row % heads, at, base);
    return seen ? within(visible(job, at), base) : Range{0, 0};
  };
  const auto chosen_by = [&](size_t row, size_t base) {
    const size_t t = job.spans[item.span * 3] + item.first + row / heads;
    return job.chosen_by(t, item.kv_head * heads + row % heads, base);
  };
  state.sums.clear();
  const size_t end = std::min(all.end, base + segment_width);
  for (base = std::max(base, all.begin / tile_width * tile_width); base < end; base += tile_width) {
    const Range part = within(all, base);
    const auto seen = [&](size_t row) { return part_of(row, base); };
    bool any = job.chosen == nullptr && job.sparse_block == 0;
    for (size_t row = 0; row < state.rows && !any; row++) {
      any = job.chosen != nullptr ? any_chosen(chosen_by(row, base), seen(row)) : seen(row).end > 0;
    }
    if (!any) {
      continue;
    }
    if (direct) {
      score_pool<typename Pool::Element>(job, item, base, part, state);
    } else {
      load_tile<Pool>(job, item, base, part, state);
      const float* keys = state.k + part.begin * state.dim;
      const Rows queries{state.q, state.dim};
      score_rows(queries, state.rows, keys, state.dim, part.end - part.begin, state.scores + part.begin);
    }
    for (size_t row = 0; row < state.rows; row++) {
      const Range own = seen(row);
      if (own.end > 0) {
        soften(job, state, row, own, chosen_by(row, base));
      }
    }
    if (direct) {
      add_pool<typename Pool::Element>(job, item, base, part, state, seen);
    } else {
      add_all_values(state, state.v + part.begin * state.v_dim, state.v_dim, part, seen);
    }
  }
}

/** An item's sums before its first segment. */
void begin_total(const AttentionJob& job, const Item& item, Sums& total) {
  total.clear();
  const size_t heads = job.heads / job.kv_heads;
  for (size_t row = 0; row < total.rows && job.sinks; row++) {
    // A sink is a score that is there from the start and has no value.
    total.top[row] = job.sinks[item.kv_head * heads + row % heads];
    total.mass[row] = 1.0f;
  }
}

/** The sums of the next segment, after those of all before it. */
void add_segment(const Sums& sums, Sums& total) {
  for (size_t row = 0; row < total.rows; row++) {
    if (sums.mass[row] == 0) {
      continue; // it sees nothing of the segment
    }
    const float top = std::max(total.top[row], sums.top[row]);
    const float before = exp_of(total.top[row] - top), after = exp_of(sums.top[row] - top);
    const float* from = sums.out + row * total.v_dim;
    float* out = total.out + row * total.v_dim;
    const V a = hn::Set(F32(), before), b = hn::Set(F32(), after);
    for (size_t i = 0; i < total.v_dim; i += lanes) {
      store(hn::MulAdd(load(from + i), b, hn::Mul(load(out + i), a)), out + i);
    }
    total.top[row] = top;
    total.mass[row] = total.mass[row] * before + sums.mass[row] * after;
  }
}

template <class T>
void end_total(const AttentionJob& job, const Item& item, const Sums& total) {
  const size_t heads = job.heads / job.kv_heads;
  for (size_t row = 0; row < total.rows; row++) {
    const size_t t = job.spans[item.span * 3] + item.first + row / heads;
    const size_t h = item.kv_head * heads + row % heads;
    if (job.masses != nullptr) {
      job.masses[t * job.heads + h] = total.top[row] + std::log(total.mass[row]);
    }
    float* out = total.out + row * total.v_dim;
    const float mass = total.mass[row] > 0 ? total.mass[row] : 1; // 0: nothing was chosen
    for (size_t i = 0; i < total.v_dim; i += lanes) {
      store(hn::Div(load(out + i), hn::Set(F32(), mass)), out + i);
    }
    narrow(out, job.v_dim, static_cast<T*>(job.out) + (t * job.heads + h) * job.v_dim);
  }
}

size_t first_segment(const AttentionJob& job, const Item& item) {
  return visible(job, item).begin / segment_width;
}

size_t segments(const AttentionJob& job, const Item& item) {
  return (visible(job, item).end + segment_width - 1) / segment_width - first_segment(job, item);
}

template <class T, class Pool>
void attend(const AttentionJob& job, const Item& item) {
  State state(job, item);
  load_queries<T>(job, item, state);
  begin_total(job, item, state.total);
  const size_t first = first_segment(job, item), count = segments(job, item);
  for (size_t i = 0; i < count; i++) {
    attend_segment<Pool>(job, item, state, (first + i) * segment_width);
    add_segment(state.sums, state.total);
  }
  end_total<T>(job, item, state.total);
}

/** The same of few items: their segments are cut into runs, enough for all threads. */
template <class T, class Pool>
void attend_in_runs(const AttentionJob& job, const std::vector<Item>& items) {
  struct Run {
    size_t item, begin, end; // of the item's segments
  };
  const size_t most = 4 * static_cast<size_t>(threads()) / items.size(); // runs of an item
  std::vector<Run> runs;
  size_t floats = 0;
  for (size_t n = 0; n < items.size(); n++) {
    const size_t count = segments(job, items[n]), length = (count + most - 1) / most;
    for (size_t i = 0; i < count; i += length) {
      runs.push_back({n, i, std::min(count, i + length)});
    }
    floats += (count + 1) * Sums::size(job, items[n]);
  }
  float* memory = thread_scratch(scratch_segments, floats);
  std::vector<float*> sums; // of an item's total, and then of its segments
  for (const Item& item : items) {
    sums.push_back(std::exchange(memory, memory + (segments(job, item) + 1) * Sums::size(job, item)));
  }
  const auto segment = [&](size_t n, size_t i) { return sums[n] + (i + 1) * Sums::size(job, items[n]); };
  parallel_for(runs.size(), [&](size_t r) {
    const Run& run = runs[r];
    const Item& item = items[run.item];
    State state(job, item);
    load_queries<T>(job, item, state);
    for (size_t i = run.begin; i < run.end; i++) {
      state.sums = Sums(job, item, segment(run.item, i));
      attend_segment<Pool>(job, item, state, (first_segment(job, item) + i) * segment_width);
    }
  });
  for (size_t n = 0; n < items.size(); n++) { // sooner than waking a thread
    Sums total(job, items[n], sums[n]);
    begin_total(job, items[n], total);
    for (size_t i = 0; i < segments(job, items[n]); i++) {
      add_segment(Sums(job, items[n], segment(n, i)), total);
    }
    end_total<T>(job, items[n], total);
  }
}

template <class T, class Pool>
void run(const AttentionJob& job) {
  std::vector<Item> tokens, items;
  const size_t heads = job.heads / job.kv_heads;
  const size_t most = std::max<size_t>(1, tile_rows / heads);
  size_t longest = 0; // in segments
  for (size_t span = 0; span < job.span_count; span++) {
    const size_t count = job.spans[span * 3 + 1];
    for (size_t i = 0; i < count; i += most) {
      const size_t queries = std::min(most, count - i);
      tokens.push_back({span, i, queries, 0});
      longest = std::max(longest, segments(job, tokens.back()));
      for (size_t g = 0; g < job.kv_heads; g++) {
        items.push_back({span, i, queries, g});
      }
    }
  }
  const auto write = [&](size_t n) {
    for (size_t i = 0; i < tokens[n].count; i++) {
      write_token<T, Pool>(job, tokens[n].span, tokens[n].first + i);
    }
  };
  if (job.tokens * job.kv_heads * job.dim < 8192) {
    for (size_t n = 0; n < tokens.size(); n++) { // sooner than waking a thread
      write(n);
    }
  } else {
    parallel_for(tokens.size(), write);
  }
  if (longest > 2 && items.size() < 2 * static_cast<size_t>(threads())) { // shorter ones are sooner done than cut
    attend_in_runs<T, Pool>(job, items);
  } else {
    parallel_for(items.size(), [&](size_t n) { attend<T, Pool>(job, items[n]); });
  }
}

void Run(const AttentionJob& job) {
  with_type(job.type, job.q, [&]<class T>(const T*) {
    if (job.kv_bits == 8) {
      run<T, Codes<8>>(job);
    } else if (job.kv_bits == 4) {
      run<T, Codes<4>>(job);
    } else {
      with_type(job.pool_type, job.q, [&]<class P>(const P*) { run<T, Floats<P>>(job); });
    }
  });
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(Run);

namespace {

void check_job(const AttentionJob& job) {
  const auto holds = [](bool fact, const char* what) {
    if (!fact) {
      throw std::invalid_argument(std::string("[paged_attention] ") + what);
    }
  };
  for (size_t r = 0; r < job.span_count; r++) {
    const int64_t first = job.spans[r * 3], count = job.spans[r * 3 + 1], offset = job.spans[r * 3 + 2];
    holds(
        first >= 0 && count >= 0 && offset >= 0 && first + count <= static_cast<int64_t>(job.tokens),
        "a span lies outside the step");
    const size_t used = (offset + count + job.block_size - 1) / job.block_size;
    holds(used <= job.table_width, "a span is longer than its table row");
    holds(
        job.chosen == nullptr || count == 0 || static_cast<size_t>(offset + count) <= job.chosen_width,
        "a span is longer than what is chosen of it");
    // Blocks that only positions before every window use may be gone.
    const size_t seen = job.first_seen(offset);
    for (size_t b = seen / job.block_size; count > 0 && b < used; b++) {
      const int64_t id = job.table[r * job.table_width + b];
      holds(id >= 0 && id < static_cast<int64_t>(job.blocks), "a table row names a block outside the pool");
    }
  }
}

} // namespace

void run_attention(const AttentionJob& job) {
  check_job(job);
  HWY_DYNAMIC_DISPATCH(Run)(job);
}
} // namespace parallm::cpu
#endif
