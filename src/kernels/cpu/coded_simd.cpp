// Matmul by affine codes, in whole numbers. Within a group, w = scale * code + bias, and x is rounded to 16-bit codes
// of a scale of its own, a power of two, so that
//   x . w = scale_x * scale * (codes of x . codes of w) + bias * sum(x).
// The inner sum is exact, whatever its order; groups are added in order, so rows stay independent. With 8-bit codes of
// x, as llama.cpp has them, a small model says other things than with its float weights. 16 bits round 256 times
// finer: a bfloat16 down to 1/128 of its group's largest is kept as it is, and a float16 down to 1/16.
//
// A vector holds as many columns of w, and a strip of rows is multiplied with it at once. So w's 32-bit words and
// groups are transposed first, a vector of columns at a time: that costs little beside reading them from memory, and w
// stays as the checkpoint has it.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/coded_simd.cpp"
#define HWY_WANT_AVX3_DL // has VNNI
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/matmul-inl.h"
#include "kernels/cpu/products-inl.h"

#include <bit>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr size_t most_rows = many_registers ? 8 : 4; // of a strip

/** A 32-bit word of w holds `codes` codes, k rising from the low bits on. Shifted by c * Bits, each of its two halves
 * has a code in its low bits: c and c + pairs. So a word of w makes `pairs` words of 16-bit codes, and x's codes lie in
 * pairs of that order. */
template <int Bits>
struct Word {
  static constexpr size_t codes = 32 / Bits;
  static constexpr size_t pairs = codes / 2;
};

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

/** The greatest power of two that is no greater than x >= 0; 0 below the least normal float. */
inline float power_below(float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7F800000u);
}

/** x [inner] of one row to row `m` of a strip of `rows`. */
template <int Bits>
void code_row(const float* x, size_t inner, size_t group, size_t m, size_t rows, int32_t* pairs, float* groups) {
  using W = Word<Bits>;
  const F32 d;
  const I32 di;
  HWY_ALIGN int32_t codes[128]; // of a group
  pairs += m * W::pairs;
  groups += m * 2;
  for (size_t k = 0; k < inner; k += group, groups += rows * 2) {
    V greatest = hn::Zero(d), wrong = hn::Zero(d);
    for (size_t i = 0; i < group; i += lanes) {
      const V v = load(x + k + i);
      greatest = hn::Max(greatest, hn::Abs(v));
      wrong = hn::MulAdd(v, hn::Zero(d), wrong); // NaN where v is no number or infinite
    }
    // x / power lies from -2 to 2: 15 bits and a sign.
    const float power = std::max(power_below(hn::GetLane(hn::MaxOfLanes(d, greatest))), 0x1p-100f);
    const V factor = hn::Set(d, 0x1p14f / power);
    VI total = hn::Zero(di);
    for (size_t i = 0; i < group; i += lanes) {
      const VI code = hn::Min(hn::NearestInt(hn::Mul(load(x + k + i), factor)), hn::Set(di, 0x7FFF));
      hn::StoreU(code, di, codes + i);
      total = hn::Add(total, code);
    }
    groups[0] = 0x1p-14f * power + sum(wrong);
    groups[1] = groups[0] * static_cast<float>(hn::GetLane(hn::SumOfLanes(di, total)));
    for (size_t i = 0; i < group; i += W::codes, pairs += rows * W::pairs) {
      for (size_t c = 0; c < W::pairs; c++) {
        pairs[c] = (codes[i + c] & 0xFFFF) | static_cast<int32_t>(static_cast<uint32_t>(codes[i + c + W::pairs]) << 16);
      }
    }
  }
}

template <int Bits>
CodedRows code_rows(const MatmulJob& job, const FloatRows& x, size_t group) {
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
      code_row<Bits>(
          row, job.inner, group, m, rows, to.pairs + first * to.row_pairs, to.groups + first * to.row_groups);
    }
  });
  return to;
}

#if HWY_TARGET == HWY_SCALAR
using Tile = VI[1];
HWY_INLINE void transpose(Tile&) {}
#else
using Tile = VI[lanes]; // a vector a column

/** tile[i] = lane i of every tile[n]. */
HWY_INLINE void transpose(Tile& tile) {
  const I32 d;
  const hn::Repartition<int64_t, I32> d2;
  // Four columns: blocks of 4 lanes each become columns of words.
  for (size_t q = 0; q < lanes; q += 4) {
    const auto two = [&](VI v) { return hn::BitCast(d2, v); };
    const auto low = two(hn::InterleaveLower(d, tile[q], tile[q + 1]));
    const auto high = two(hn::InterleaveUpper(d, tile[q], tile[q + 1]));
    const auto low2 = two(hn::InterleaveLower(d, tile[q + 2], tile[q + 3]));
    const auto high2 = two(hn::InterleaveUpper(d, tile[q + 2], tile[q + 3]));
    tile[q] = hn::BitCast(d, hn::InterleaveLower(d2, low, low2));
    tile[q + 1] = hn::BitCast(d, hn::InterleaveUpper(d2, low, low2));
    tile[q + 2] = hn::BitCast(d, hn::InterleaveLower(d2, high, high2));
    tile[q + 3] = hn::BitCast(d, hn::InterleaveUpper(d2, high, high2));
  }
  // Then the blocks among the columns' quarters.
#if HWY_MAX_BYTES == 32
  for (size_t i = 0; i < 4; i++) {
    const VI a = tile[i], b = tile[i + 4];
    tile[i] = hn::ConcatLowerLower(d, b, a);
    tile[i + 4] = hn::ConcatUpperUpper(d, b, a);
  }
#elif HWY_MAX_BYTES == 64
  const auto even = [](VI a, VI b) { return VI{_mm512_shuffle_i32x4(a.raw, b.raw, 0x88)}; };
  const auto odd = [](VI a, VI b) { return VI{_mm512_shuffle_i32x4(a.raw, b.raw, 0xDD)}; };
  for (size_t i = 0; i < 4; i++) {
    const VI a = even(tile[i], tile[i + 4]), b = odd(tile[i], tile[i + 4]);
    const VI c = even(tile[i + 8], tile[i + 12]), e = odd(tile[i + 8], tile[i + 12]);
    tile[i] = even(a, c);
    tile[i + 4] = even(b, e);
    tile[i + 8] = odd(a, c);
    tile[i + 12] = odd(b, e);
  }
#endif
}
#endif

/** Asks for what lies `bytes` after p: the reading jumps from column to column, which hardware doesn't follow. */
HWY_INLINE void prefetch(const void* p, size_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + bytes));
}

/** to[i * lanes + n] = column n's i-th word, for i up to `words` and on to a whole tile; column n begins `stride` bytes
 * after the one before it, and those past the `count`-th are the last one again. What is wanted next lies `ahead` bytes
 * on. */
template <bool Full>
void transpose(const uint8_t* from, size_t stride, size_t count, size_t words, size_t ahead, int32_t* to) {
  const I32 d;
  const auto at = [&](size_t n, size_t i) {
    return reinterpret_cast<const int32_t*>(from + (Full || n < count ? n : count - 1) * stride) + i;
  };
  for (size_t i = 0; i < words; i += lanes, to += lanes * lanes) {
    Tile tile;
    if (i + lanes <= words) {
      for (size_t n = 0; n < lanes; n++) {
        tile[n] = hn::LoadU(d, at(n, i));
        prefetch(at(n, i), ahead);
      }
    } else {
      for (size_t n = 0; n < lanes; n++) { // a masked load may read all of a vector
        int32_t rest[lanes] = {};
        std::memcpy(rest, at(n, i), (words - i) * sizeof(int32_t));
        tile[n] = hn::LoadU(d, rest);
        prefetch(at(n, i), ahead);
      }
    }
    transpose(tile);
    for (size_t w = 0; w < lanes; w++) {
      hn::StoreU(tile[w], d, to + w * lanes);
    }
  }
}

void transpose(const uint8_t* from, size_t stride, size_t count, size_t words, size_t ahead, int32_t* to) {
  return count == lanes ? transpose<true>(from, stride, count, words, ahead, to)
                        : transpose<false>(from, stride, count, words, ahead, to);
}

/** One byte to each code; 8 codes are a little-endian number of `Bits` bytes. */
template <int Bits>
void spread(const uint8_t* packed, size_t count, uint8_t* bytes) {
  constexpr uint64_t mask = (1u << Bits) - 1;
  for (size_t i = 0; i < count; i += 8, packed += Bits) {
    uint64_t v = 0;
    for (int b = 0; b < Bits; b++) {
      v |= static_cast<uint64_t>(packed[b]) << (8 * b);
    }
    // Halves, quarters and eighths move apart, each to its own bytes.
    constexpr uint64_t low4 = (uint64_t{1} << (4 * Bits)) - 1;
    constexpr uint64_t low2 = ((uint64_t{1} << (2 * Bits)) - 1) * 0x0000000100000001;
    v = (v & low4) | (v >> (4 * Bits) << 32);
    v = (v & low2) | ((v >> (2 * Bits) & low2) << 16);
    constexpr uint64_t low1 = mask * 0x0001000100010001;
    v = (v & low1) | ((v >> Bits & low1) << 8);
    for (int b = 0; b < 8; b++) {
      bytes[i + b] = static_cast<uint8_t>(v >> (8 * b));
    }
  }
}

// K is cut into stretches of this length, so that a vector of columns stays in the L1 cache. No sum depends on it.
constexpr size_t stretch = 2048;

/** Columns [first, first + count), count <= lanes, and [k, k + length) of K. */
struct Part {
  size_t first, count, k, length;
};

/** A part of w, transposed. */
struct Columns {
  const int32_t* words; // [words of K, lanes]
  const float* scales; // [groups, lanes]
  const float* biases;
};

/** Columns' groups: `used` of each column, which lie `groups` apart -> [used, lanes]. */
void open_groups(const float* values, size_t groups, size_t count, size_t used, float* to) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);
  const size_t stride = groups * sizeof(float);
  transpose(bytes, stride, count, used, lanes * stride, reinterpret_cast<int32_t*>(to));
}

/** The low and the high halves of a vector's words as floats. */
HWY_INLINE void store_halves(VI v, hwy::float16_t, float* low, float* high) {
  const hn::Rebind<uint16_t, F32> d16;
  const hn::Rebind<hwy::float16_t, F32> half;
  const auto widen_low = [&](VU words) { return hn::PromoteTo(F32(), hn::BitCast(half, hn::TruncateTo(d16, words))); };
  const VU words = hn::BitCast(U32(), v);
  store(widen_low(words), low);
  store(widen_low(hn::ShiftRight<16>(words)), high);
}

HWY_INLINE void store_halves(VI v, hwy::bfloat16_t, float* low, float* high) {
  const F32 d;
  store(hn::BitCast(d, hn::ShiftLeft<16>(v)), low);
  store(hn::BitCast(d, hn::And(v, hn::Set(I32(), static_cast<int32_t>(0xFFFF0000)))), high);
}

/** Two 16-bit values are transposed as one word. */
template <class T>
void open_groups(const T* values, size_t groups, size_t count, size_t used, float* to) {
  const size_t words = (used + 1) / 2;
  float* memory = thread_scratch(scratch::wide, lanes * words + round_up(words, lanes) * lanes);
  auto* pairs = reinterpret_cast<int32_t*>(memory + lanes * words);
  const auto* from = reinterpret_cast<const uint8_t*>(values);
  size_t stride = groups * sizeof(T);
  const size_t ahead = lanes * stride;
  if (groups % 2 != 0) { // a last word has but one value, which may be the memory's last
    for (size_t n = 0; n < count; n++) {
      std::memcpy(memory + n * words, values + n * groups, used * sizeof(T));
    }
    from = reinterpret_cast<const uint8_t*>(memory);
    stride = words * sizeof(int32_t);
  }
  transpose(from, stride, count, words, ahead, pairs);
  for (size_t i = 0; i < words; i++, to += 2 * lanes) {
    store_halves(hn::LoadU(I32(), pairs + i * lanes), T{}, to, to + lanes);
  }
}

/** Codes of 3, 5 and 6 bits become bytes. */
Columns open_columns(const Factor& factor, size_t inner, const Part& part) {
  const int bits = factor.how.bits;
  const size_t group = factor.how.group_size, groups = inner / group, used = part.length / group;
  const bool spreads = bits == 3 || bits == 5 || bits == 6;
  size_t stride = inner / 8 * bits, words = part.length * bits / 32;
  const auto* packed = static_cast<const uint8_t*>(factor.w) + part.first * stride + part.k / 8 * bits;
  size_t ahead = lanes * stride; // the next columns
  if (spreads) {
    auto* bytes = reinterpret_cast<uint8_t*>(thread_scratch(scratch::bytes, lanes * part.length / 4));
    const auto run = bits == 3 ? &spread<3> : bits == 5 ? &spread<5> : &spread<6>;
    for (size_t n = 0; n < part.count; n++) {
      run(packed + n * stride, part.length, bytes + n * part.length);
    }
    packed = bytes;
    stride = part.length;
    words = part.length / 4;
    ahead = 0;
  }
  auto* to = reinterpret_cast<int32_t*>(thread_scratch(scratch::words, round_up(words, lanes) * lanes));
  transpose(packed, stride, part.count, words, ahead, to);
  const size_t size = round_up(used, 2 * lanes) * lanes, at = part.first * groups + part.k / group;
  float* scales = thread_scratch(scratch::groups, 2 * size);
  float* biases = scales + size;
  with_type(factor.type, factor.scales, [&](auto* from) { open_groups(from + at, groups, part.count, used, scales); });
  with_type(factor.type, factor.biases, [&](auto* from) { open_groups(from + at, groups, part.count, used, biases); });
  return {to, scales, biases};
}

/** A strip of MR rows by a part of w: sums[m * lanes + n] go on. */
template <int Bits, int MR>
HWY_NOINLINE void multiply_strip(
    const int32_t* pairs,
    const float* x_groups,
    const Columns& w,
    size_t groups,
    size_t group_words,
    float* sums) {
  using W = Word<Bits>;
  const F32 d;
  const I32 di;
  const VI mask = hn::Set(di, ((1 << Bits) - 1) * 0x10001);
  V acc[MR];
  for (int m = 0; m < MR; m++) {
    acc[m] = load(sums + m * lanes);
  }
  const int32_t* words = w.words;
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
      const V both = hn::Mul(scale, hn::Set(d, x_groups[2 * m]));
      acc[m] = hn::MulAdd(hn::ConvertTo(d, whole[m]), both, acc[m]);
      acc[m] = hn::MulAdd(bias, hn::Set(d, x_groups[2 * m + 1]), acc[m]);
    }
  }
  for (int m = 0; m < MR; m++) {
    store(acc[m], sums + m * lanes);
  }
}

/** A job's rows as codes, and how to multiply them with a vector of columns. */
template <int Bits>
class Products {
 public:
  Products(const MatmulJob& job, const FloatRows& x, size_t group)
      : job_(job), x_(code_rows<Bits>(job, x, group)), group_(group) {}

  /** sums [all rows, lanes], rows rounded up to whole strips. */
  void multiply(const Factor& factor, size_t first, size_t count, float* sums) const {
    std::memset(sums, 0, round_up(job_.rows, most_rows) * lanes * sizeof(float));
    for (size_t k = 0; k < job_.inner; k += stretch) {
      const Part part{first, count, k, std::min(stretch, job_.inner - k)};
      const auto w = open_columns(factor, job_.inner, part);
      for (size_t m = 0; m < job_.rows; m += most_rows) {
        const size_t rows = strip_rows(std::min(most_rows, job_.rows - m));
        const auto strip = rows == 1 ? &multiply_strip<Bits, 1>
            : rows == 2              ? &multiply_strip<Bits, 2>
            : rows == 4              ? &multiply_strip<Bits, 4>
                                     : &multiply_strip<Bits, most_rows>;
        const auto* pairs = x_.pairs + m * x_.row_pairs + k / 2 * rows;
        const auto* groups = x_.groups + m * x_.row_groups + k / group_ * 2 * rows;
        strip(pairs, groups, w, part.length / group_, group_ / Word<Bits>::codes, sums + m * lanes);
      }
    }
  }

 private:
  const MatmulJob& job_;
  CodedRows x_;
  size_t group_;
};

template <int Bits>
void run(const MatmulJob& job, const FloatRows& x, const Factor* factors, size_t count) {
  const Products<Bits> products(job, x, factors->how.group_size);
  const size_t size = round_up(job.rows, most_rows) * lanes;
  for_columns(factors, job.gated ? 1 : count, lanes, 64, [&](const Factor& factor, size_t from, size_t many) {
    for (size_t first = from; first < from + many; first += lanes) {
      const size_t used = std::min(lanes, from + many - first);
      make_columns(job, factor, first, used, lanes, size, [&](const Factor& of, float* sums) {
        products.multiply(of, first, used, sums);
      });
    }
  });
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
