// Attention over a paged cache with the online softmax (Milakov and Gimelshein,
// arXiv 1805.02867; tiled as in FlashAttention, arXiv 2205.14135). A query's
// positions are taken in tiles that begin at multiples of `tile_width` in its
// own sequence, so its sums have one order whichever queries share the loads.
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
constexpr size_t tile_rows = 32; // query heads of one kv head that share loads, about
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

enum Scratch { scratch_head, scratch_item };

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

/** What an item keeps: a row is one head of one query. */
struct State {
  size_t rows, dim, v_dim; // dims rounded up to whole vectors
  float* q; // [rows, dim], rotated and scaled
  float* k; // [tile_width, dim]
  float* v; // [tile_width, v_dim]
  float* scores; // [rows, tile_width]
  float* out; // [rows, v_dim], not yet divided by mass
  float* top; // [rows] greatest score so far
  float* mass; // [rows] sum of exp(score - top)

  State(const AttentionJob& job, const Item& item) {
    rows = item.count * (job.heads / job.kv_heads);
    dim = round_up(job.dim, lanes);
    v_dim = round_up(job.v_dim, lanes);
    const size_t padded_rows = round_up(rows, 16); // keeps what follows aligned
    float* next =
        thread_scratch(scratch_item, (rows + tile_width) * (dim + v_dim) + rows * tile_width + 2 * padded_rows);
    const auto take = [&](size_t count) { return std::exchange(next, next + count); };
    top = take(padded_rows);
    mass = take(padded_rows);
    scores = take(rows * tile_width);
    q = take(rows * dim);
    k = take(tile_width * dim);
    v = take(tile_width * v_dim);
    out = take(rows * v_dim);
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
    // A sink is a score that is there from the start and has no value.
    state.top[row] = job.sinks ? job.sinks[h] : minus_infinity;
    state.mass[row] = job.sinks ? 1.0f : 0.0f;
  }
  std::memset(state.out, 0, state.rows * state.v_dim * sizeof(float));
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

/** A tile's scores and values straight from pools of floats. */
template <class P>
void score_pool(const AttentionJob& job, const Item& item, size_t base, Range part, State& state) {
  for_pieces(job, item, base, part, [&](const Piece& piece) {
    const auto* k = static_cast<const P*>(job.k_pool) + piece.place * job.dim;
    const size_t many = piece.end - piece.begin;
    multiply(
        Rows{state.q, state.dim},
        state.rows,
        Dense<P>{k, job.dim},
        many,
        job.dim,
        job.dim,
        state.scores + piece.begin,
        tile_width);
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
  const float before = state.top[row];
  const float top = std::max(before, hn::GetLane(hn::MaxOfLanes(d, greatest)));
  V total = hn::Zero(d);
  for (size_t j = 0; j < tile_width; j += lanes) {
    const V p = hn::Exp(d, hn::Sub(load(scores + j), hn::Set(d, top)));
    total = hn::Add(total, p);
    store(p, scores + j);
  }
  if (top != before) {
    const float shrink = exp_of(before - top);
    state.top[row] = top;
    state.mass[row] *= shrink;
    float* out = state.out + row * state.v_dim;
    for (size_t i = 0; i < state.v_dim; i += lanes) {
      store(hn::Mul(load(out + i), hn::Set(d, shrink)), out + i);
    }
  }
  state.mass[row] += sum(total);
}

/** out[row] += weights . v for `Rows` rows that see the same part of a tile, `Vectors` vectors of Dv at a time. `v`:
 * the values from the part's begin on, `stride` apart. */
template <int Rows, int Vectors, class P>
HWY_INLINE size_t add_values(State& state, size_t row, Range part, const P* values, size_t stride, size_t i) {
  for (; i + Vectors * lanes <= state.v_dim; i += Vectors * lanes) {
    V acc[Rows][Vectors];
    float* out = state.out + row * state.v_dim + i;
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
  const size_t i = add_values < Rows, Rows == 1 ? 4 : 2 > (state, row, part, values, stride, 0);
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
    const auto* v = static_cast<const P*>(job.v_pool) + piece.place * job.v_dim;
    add_all_values(state, v, job.v_dim, {piece.begin, piece.end}, seen);
  });
}

template <class T, class Pool>
void attend(const AttentionJob& job, const Item& item) {
  State state(job, item);
  load_queries<T>(job, item, state);
  const size_t heads = job.heads / job.kv_heads;
  const size_t position = job.spans[item.span * 3 + 2] + item.first;
  const Range all{visible(job, position).begin, position + item.count};
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
  for (size_t base = all.begin / tile_width * tile_width; base < all.end; base += tile_width) {
    const Range part = within(all, base);
    const auto seen = [&](size_t row) { return part_of(row, base); };
    bool any = job.chosen == nullptr && job.sparse_block == 0;
    for (size_t row = 0; row < state.rows && !any; row++) {
      any = job.chosen != nullptr ? any_chosen(chosen_by(row, base), seen(row)) : seen(row).end > 0;
    }
    if (!any) {
      continue;
    }
    std::memset(state.scores, 0, state.rows * tile_width * sizeof(float));
    if (direct) {
      score_pool<typename Pool::Element>(job, item, base, part, state);
    } else {
      load_tile<Pool>(job, item, base, part, state);
      const Dense<float> keys{state.k + part.begin * state.dim, state.dim};
      const size_t many = part.end - part.begin;
      const Rows queries{state.q, state.dim};
      multiply(queries, state.rows, keys, many, state.dim, state.dim, state.scores + part.begin, tile_width);
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
  for (size_t row = 0; row < state.rows; row++) {
    const size_t t = job.spans[item.span * 3] + item.first + row / heads;
    const size_t h = item.kv_head * heads + row % heads;
    if (job.masses != nullptr) {
      job.masses[t * job.heads + h] = state.top[row] + std::log(state.mass[row]);
    }
    float* out = state.out + row * state.v_dim;
    const float mass = state.mass[row] > 0 ? state.mass[row] : 1; // 0: nothing was chosen
    for (size_t i = 0; i < state.v_dim; i += lanes) {
      store(hn::Div(load(out + i), hn::Set(F32(), mass)), out + i);
    }
    narrow(out, job.v_dim, static_cast<T*>(job.out) + (t * job.heads + h) * job.v_dim);
  }
}

template <class T, class Pool>
void run(const AttentionJob& job) {
  std::vector<Item> tokens, items;
  const size_t heads = job.heads / job.kv_heads;
  const size_t most = std::max<size_t>(1, tile_rows / heads);
  for (size_t span = 0; span < job.span_count; span++) {
    const size_t count = job.spans[span * 3 + 1];
    for (size_t i = 0; i < count; i += most) {
      const size_t queries = std::min(most, count - i);
      tokens.push_back({span, i, queries, 0});
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
  parallel_for(items.size(), [&](size_t n) { attend<T, Pool>(job, items[n]); });
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
