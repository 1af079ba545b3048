// Matmul by affine codes, in whole numbers. Within a group, w = scale * code + bias, and x is rounded to 16-bit codes
// of a scale of its own, a power of two, so that
//   x . w = scale_x * scale * (codes of x . codes of w) + bias * sum(x).
// The inner sum is exact, whatever its order; groups are added in order, so rows stay independent. With 8-bit codes of
// x, as llama.cpp has them, a small model says other things than with its float weights. 16 bits round 256 times
// finer: a bfloat16 down to 1/128 of its group's largest is kept as it is, and a float16 down to 1/16.
//
// A vector holds as many columns of w, and a strip of rows is multiplied with it at once. So w's 32-bit words and
// groups are transposed first, a vector of columns at a time, and w stays as the checkpoint has it. For up to three
// rows that would take longer than to read w from memory: there only their sums and the groups are transposed
// (LineProducts).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/coded_simd.cpp"
#define HWY_WANT_AVX3_DL // has VNNI
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/coded-inl.h"

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr size_t most_rows = many_registers ? 8 : 4; // of a strip

/** Rows of x as codes, in strips of up to `most_rows` rows, so that a strip's memory is read once from start to end. */
struct CodedRows {
  int32_t* pairs; // a strip: [words of K, rows, Word::pairs]
  float* groups; // a strip: [groups, rows, 2]: scale, and sum of x over the group
  size_t row_pairs, row_groups; // of one row, in elements
};

/** Rows that the kinds of strips have. */
constexpr size_t strip_rows(size_t left) {
  return left <= 2 ? left : left <= 4 ? 4 : most_rows;
}

template <int Bits>
CodedRows code_rows(const MatmulJob& job, const FloatRows& x, size_t group) {
  using W = Word<Bits>;
  CodedRows to;
  to.row_pairs = job.inner / 2;
  to.row_groups = job.inner / group * 2;
  const size_t padded = round_up(job.rows, most_rows);
  to.groups = thread_scratch(scratch::codes, padded * (to.row_pairs + to.row_groups));
  to.pairs = reinterpret_cast<int32_t*>(to.groups + padded * to.row_groups);
  parallel_for((job.rows + most_rows - 1) / most_rows, [&](size_t strip) {
    const size_t first = strip * most_rows, used = std::min(most_rows, job.rows - first), rows = strip_rows(used);
    for (size_t m = 0; m < rows; m++) {
      // Places of the strip past the last row hold that again.
      const float* row = x.data + (first + std::min(m, used - 1)) * x.stride;
      int32_t* pairs = to.pairs + first * to.row_pairs + m * W::pairs;
      float* groups = to.groups + first * to.row_groups + m * 2;
      code_row(row, job.inner, group, groups, rows * 2, [&](size_t, const int16_t* codes) {
        for (size_t i = 0; i < group; i += W::codes, pairs += rows * W::pairs) {
          put_pairs<Bits>(codes + i, pairs);
        }
      });
    }
  });
  return to;
}

/** A strip of MR rows by a part of w: sums[m * lanes + n] go on. */
template <int Bits, int MR>
HWY_NOINLINE void multiply_strip(
    const int32_t* pairs,
    const float* x_groups,
    const int32_t* words,
    const ColumnGroups& w,
    size_t groups,
    size_t group_words,
    float* sums) {
  using W = Word<Bits>;
  const I32 di;
  const VI mask = hn::Set(di, ((1 << Bits) - 1) * 0x10001);
  V acc[MR];
  for (int m = 0; m < MR; m++) {
    acc[m] = load(sums + m * lanes);
  }
  for (size_t g = 0; g < groups; g++, x_groups += 2 * MR) {
    VI whole[MR];
    for (int m = 0; m < MR; m++) {
      whole[m] = hn::Zero(di);
    }
    for (const int32_t* end = words + group_words * lanes; words < end; words += lanes, pairs += MR * W::pairs) {
      VI rest = hn::LoadU(di, words);
      for (size_t c = 0; c < W::pairs; c++) {
        const VI code = hn::And(rest, mask);
        for (int m = 0; m < MR; m++) {
          whole[m] = add_products(whole[m], code, pairs + m * W::pairs + c);
        }
        rest = hn::ShiftRight<Bits>(rest);
      }
    }
    const V scale = load(w.scales + g * lanes), bias = load(w.biases + g * lanes);
    for (int m = 0; m < MR; m++) {
      acc[m] = add_group(acc[m], whole[m], scale, bias, x_groups + 2 * m);
    }
  }
  for (int m = 0; m < MR; m++) {
    store(acc[m], sums + m * lanes);
  }
}

/** A job's rows as codes, and how to multiply them with a vector of columns. */
template <int Bits>
class StripProducts {
 public:
  StripProducts(const MatmulJob& job, const FloatRows& x, size_t group)
      : rows_(job.rows), group_(group), x_(code_rows<Bits>(job, x, group)) {}

  /** sums [all rows, lanes], rows rounded up to whole strips, go on. */
  void add(const Part& part, const Packed& codes, const ColumnGroups& w, float* sums) const {
    auto* words = reinterpret_cast<int32_t*>(thread_scratch(scratch::words, codes.words * lanes));
    transpose(codes.from, codes.stride, part.count, codes.words, codes.ahead, [&](size_t i, VI w) {
      hn::StoreU(w, I32(), words + i * lanes);
    });
    for (size_t m = 0; m < rows_; m += most_rows) {
      const size_t rows = strip_rows(std::min(most_rows, rows_ - m));
      const auto strip = rows == 1 ? &multiply_strip<Bits, 1>
          : rows == 2              ? &multiply_strip<Bits, 2>
          : rows == 4              ? &multiply_strip<Bits, 4>
                                   : &multiply_strip<Bits, most_rows>;
      const auto* pairs = x_.pairs + m * x_.row_pairs + part.k / 2 * rows;
      const auto* groups = x_.groups + m * x_.row_groups + part.k / group_ * 2 * rows;
      strip(pairs, groups, words, w, part.length / group_, group_ / Word<Bits>::codes, sums + m * lanes);
    }
  }

 private:
  size_t rows_, group_;
  CodedRows x_;
};

#if HWY_TARGET != HWY_SCALAR
// Few rows need no columns in lanes. A vector takes the next words of one column, and as many of a row's codes; the
// products are summed by fours of lanes, and only these sums change places. They are whole numbers, so a row's bits are
// those that it has in a strip.

/** How x lies beside a vector of w's words: `vectors` of its own, in which each word of w has one. */
template <int Bits>
struct Line {
  static constexpr size_t vectors = Word<Bits>::pairs;

  /** A word's codes of x, to `vectors` words that lie `lanes` apart. */
  static HWY_INLINE void put(const int16_t* codes, int32_t* to) {
    int32_t pairs[vectors];
    put_pairs<Bits>(codes, pairs);
    for (size_t c = 0; c < vectors; c++) {
      to[c * lanes] = pairs[c];
    }
  }

  static HWY_INLINE VI products(VI w, const VI (&x)[vectors]) {
    const I32 d;
    const VI mask = hn::Set(d, ((1 << Bits) - 1) * 0x10001);
    VI sums = hn::Zero(d);
    for (size_t c = 0; c < vectors; c++) {
      sums = add_products(sums, hn::And(w, mask), x[c]);
      w = hn::ShiftRight<Bits>(w);
    }
    return sums;
  }
};

#if HWY_TARGET <= HWY_AVX3_DL
/** In bytes: a byte of w holds two codes, and for each x has a vector of its codes' high bytes, with a sign, and one of
 * the low ones, without. So w is taken apart in half the time. */
template <>
struct Line<4> {
  static constexpr size_t vectors = 4;

  static HWY_INLINE void put(const int16_t* codes, int32_t* to) {
    const hn::Full128<uint8_t> d;
    HWY_ALIGN constexpr uint8_t order[16] = {1, 5, 9, 13, 0, 4, 8, 12, 3, 7, 11, 15, 2, 6, 10, 14};
    HWY_ALIGN int32_t words[vectors];
    const auto bytes = hn::LoadU(d, reinterpret_cast<const uint8_t*>(codes));
    hn::Store(hn::TableLookupBytes(bytes, hn::Load(d, order)), d, reinterpret_cast<uint8_t*>(words));
    for (size_t c = 0; c < vectors; c++) {
      to[c * lanes] = words[c];
    }
  }

  static HWY_INLINE VI products(VI w, const VI (&x)[vectors]) {
    const I32 d;
    const VI mask = hn::Set(d, 0x0F0F0F0F), even = hn::And(w, mask), odd = hn::And(hn::ShiftRight<4>(w), mask);
    const VI high = add_byte_products(add_byte_products(hn::Zero(d), even, x[0]), odd, x[2]);
    return add_byte_products(add_byte_products(hn::ShiftLeft<8>(high), x[1], even), x[3], odd);
  }
};
#endif

/** Few rows of x as codes. */
struct CodedLines {
  int32_t* words; // [rows, words of K / lanes, Line::vectors, lanes]
  float* groups; // [rows, groups, 2]: scale, and sum of x over the group
  size_t row_words, row_groups; // of one row, in elements
};

template <int Bits>
CodedLines code_lines(const MatmulJob& job, const FloatRows& x, size_t group) {
  constexpr size_t codes_of = Word<Bits>::codes, vectors = Line<Bits>::vectors;
  CodedLines to;
  to.row_words = round_up(job.inner / codes_of, lanes) * vectors;
  to.row_groups = job.inner / group * 2;
  float* memory = thread_scratch(scratch::codes, job.rows * (to.row_words + to.row_groups));
  to.words = reinterpret_cast<int32_t*>(memory);
  to.groups = memory + job.rows * to.row_words;
  for (size_t m = 0; m < job.rows; m++) {
    int32_t* words = to.words + m * to.row_words;
    code_row(
        x.data + m * x.stride, job.inner, group, to.groups + m * to.row_groups, 2, [&](size_t k, const auto* codes) {
          for (size_t i = 0; i < group; i += codes_of) {
            const size_t word = (k + i) / codes_of;
            Line<Bits>::put(codes + i, words + word / lanes * lanes * vectors + word % lanes);
          }
        });
  }
  return to;
}

/** fours: of each four columns, what sum_blocks gives -> whole[g]: of all columns, the sum over the g-th of as many
 * equal parts of a vector. */
template <size_t Count>
HWY_INLINE void sum_parts(const VI (&fours)[lanes / 4], VI (&whole)[Count]) {
#if HWY_MAX_BYTES == 64
  const VI a = even_blocks(fours[0], fours[1]), b = odd_blocks(fours[0], fours[1]);
  const VI c = even_blocks(fours[2], fours[3]), e = odd_blocks(fours[2], fours[3]);
  if constexpr (Count == 4) {
    whole[0] = even_blocks(a, c);
    whole[1] = even_blocks(b, e);
    whole[2] = odd_blocks(a, c);
    whole[3] = odd_blocks(b, e);
  } else {
    const VI ab = hn::Add(a, b), ce = hn::Add(c, e);
    whole[0] = even_blocks(ab, ce);
    whole[Count - 1] = Count == 2 ? odd_blocks(ab, ce) : hn::Add(even_blocks(ab, ce), odd_blocks(ab, ce));
  }
#elif HWY_MAX_BYTES == 32
  const I32 d;
  const VI low = hn::ConcatLowerLower(d, fours[1], fours[0]), high = hn::ConcatUpperUpper(d, fours[1], fours[0]);
  whole[0] = low;
  whole[Count - 1] = Count == 2 ? high : hn::Add(low, high);
#else
  whole[0] = fours[0];
#endif
}

/** The rows of `x`, from a part's begin on, by a vector of columns: sums[m * lanes + n] go on. A vector of a column's
 * words has `Count` groups, or a group has `group_vectors`. */
template <int Bits, size_t Count, size_t Rows>
HWY_NOINLINE void multiply_lines(
    const CodedLines& x,
    const Packed& codes,
    size_t count,
    const ColumnGroups& w,
    size_t groups,
    size_t group_vectors,
    float* sums) {
  constexpr size_t vectors = Line<Bits>::vectors;
  const I32 d;
  V acc[Rows];
  for (size_t m = 0; m < Rows; m++) {
    acc[m] = load(sums + m * lanes);
  }
  const int32_t* words = x.words;
  for (size_t i = 0, g = 0; g < groups; g += Count) {
    VI fours[Rows][lanes / 4];
    for (auto& row : fours) {
      std::fill(std::begin(row), std::end(row), hn::Zero(d));
    }
    for (size_t v = 0; v < group_vectors; v++, i += lanes, words += vectors * lanes) {
      VI own[Rows][vectors];
      for (size_t m = 0; m < Rows; m++) {
        for (size_t c = 0; c < vectors; c++) {
          own[m][c] = hn::LoadU(d, words + m * x.row_words + c * lanes);
        }
      }
      const bool whole = i + lanes <= codes.words;
      for (size_t q = 0; q < lanes / 4; q++) {
        VI products[Rows][4];
        for (size_t n = 0; n < 4; n++) {
          const size_t column = std::min(4 * q + n, count - 1);
          const auto* p = reinterpret_cast<const int32_t*>(codes.from + column * codes.stride) + i;
          const VI next = whole ? hn::LoadU(d, p) : load_first(p, codes.words - i);
          prefetch(p, codes.ahead);
          for (size_t m = 0; m < Rows; m++) {
            products[m][n] = Line<Bits>::products(next, own[m]);
          }
        }
        for (size_t m = 0; m < Rows; m++) {
          const auto& of = products[m];
          fours[m][q] = hn::Add(fours[m][q], sum_blocks(of[0], of[1], of[2], of[3]));
        }
      }
    }
    for (size_t m = 0; m < Rows; m++) {
      VI whole[Count];
      sum_parts(fours[m], whole);
      for (size_t part = 0; part < Count && g + part < groups; part++) {
        const size_t at = (g + part) * lanes;
        const float* x_group = x.groups + m * x.row_groups + 2 * (g + part);
        acc[m] = add_group(acc[m], whole[part], load(w.scales + at), load(w.biases + at), x_group);
      }
    }
  }
  for (size_t m = 0; m < Rows; m++) {
    store(acc[m], sums + m * lanes);
  }
}

/** As StripProducts, of up to `most` rows whose groups fill vectors or equal parts of four lanes or more. */
template <int Bits>
class LineProducts {
 public:
  static constexpr size_t most = 3;

  LineProducts(const MatmulJob& job, const FloatRows& x, size_t group)
      : rows_(job.rows), group_(group), x_(code_lines<Bits>(job, x, group)) {}

  void add(const Part& part, const Packed& codes, const ColumnGroups& w, float* sums) const {
    rows_ == 1       ? add<1>(part, codes, w, sums)
        : rows_ == 2 ? add<2>(part, codes, w, sums)
                     : add<3>(part, codes, w, sums);
  }

 private:
  template <size_t Rows>
  void add(const Part& part, const Packed& codes, const ColumnGroups& w, float* sums) const {
    const size_t words = group_ / Word<Bits>::codes; // of a group
    const auto run = 4 * words == lanes ? &multiply_lines<Bits, std::clamp<size_t>(lanes / 4, 1, 4), Rows>
        : 2 * words == lanes            ? &multiply_lines<Bits, std::clamp<size_t>(lanes / 4, 1, 2), Rows>
                                        : &multiply_lines<Bits, 1, Rows>;
    CodedLines x = x_;
    x.words += part.k / Word<Bits>::codes * Line<Bits>::vectors;
    x.groups += part.k / group_ * 2;
    run(x, codes, part.count, w, part.length / group_, std::max<size_t>(words / lanes, 1), sums);
  }

  size_t rows_, group_;
  CodedLines x_;
};
#endif

template <class Products>
void run(const MatmulJob& job, const FloatRows& x, const Factor* factors, size_t count) {
  const size_t group = factors->how.group_size, size = round_up(job.rows, most_rows) * lanes;
  const Products products(job, x, group);
  for_columns(factors, job.gated ? 1 : count, lanes, 64, [&](const Factor& factor, size_t from, size_t many) {
    for (size_t first = from; first < from + many; first += lanes) {
      const size_t used = std::min(lanes, from + many - first);
      make_columns(job, factor, first, used, lanes, size, [&](const Factor& of, float* sums) {
        std::memset(sums, 0, size * sizeof(float));
        for (size_t k = 0; k < job.inner; k += stretch) {
          const Part part{first, used, k, std::min(stretch, job.inner - k)};
          products.add(part, open_codes(of, job.inner, part), column_groups(of, job.inner, part), sums);
        }
      });
    }
  });
}

template <int Bits>
void run(const MatmulJob& job, const FloatRows& x, const Factor* factors, size_t count) {
#if HWY_TARGET != HWY_SCALAR
  if (job.rows <= LineProducts<Bits>::most && static_cast<size_t>(factors->how.group_size) >= 4 * Word<Bits>::codes) {
    return run<LineProducts<Bits>>(job, x, factors, count);
  }
#endif
  run<StripProducts<Bits>>(job, x, factors, count);
}

void RunCoded(const MatmulJob& job, const FloatRows& x, const Factor* factors, size_t count) {
  const int bits = factors->how.bits;
  return bits == 2 ? run<2>(job, x, factors, count)
      : bits == 4  ? run<4>(job, x, factors, count)
                   : run<8>(job, x, factors, count);
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(RunCoded);

void run_coded_matmul(const MatmulJob& job, const FloatRows& x, const Factor* factors, size_t count) {
  HWY_DYNAMIC_DISPATCH(RunCoded)(job, x, factors, count);
}
} // namespace parallm::cpu
#endif
