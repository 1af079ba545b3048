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
#include "kernels/cpu/attention_tile-inl.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr size_t segment_width = 128; // positions, whole tiles
constexpr size_t tile_rows = 64; // query heads of one kv head that share loads, about

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
