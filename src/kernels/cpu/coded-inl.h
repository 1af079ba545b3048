// What coded_simd.cpp makes of a job before it multiplies: codes of x, and columns of w with a vector's lanes a column
// each. Included once for each instruction set, after hwy/foreach_target.h.
#include "kernels/cpu/matmul-inl.h"
#include "kernels/cpu/products-inl.h"

#include <algorithm>
#include <bit>

#if defined(PARALLM_CODED_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef PARALLM_CODED_INL_H
#undef PARALLM_CODED_INL_H
#else
#define PARALLM_CODED_INL_H
#endif

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

/** A 32-bit word of w holds `codes` codes, k rising from the low bits on. Shifted by c * Bits, each of its two halves
 * has a code in its low bits: c and c + pairs. So a word of w makes `pairs` words of 16-bit codes, and x's codes lie in
 * pairs of that order. */
template <int Bits>
struct Word {
  static constexpr size_t codes = 32 / Bits;
  static constexpr size_t pairs = codes / 2;
};

/** The greatest power of two that is no greater than x >= 0; 0 below the least normal float. */
inline float power_below(float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7F800000u);
}

/** x [inner] as codes: put(k, codes) takes a group's, `groups` its scale and its sum; a group's lie `spacing` floats
 * after those of the one before it. */
template <class Put>
HWY_INLINE void code_row(const float* x, size_t inner, size_t group, float* groups, size_t spacing, const Put& put) {
  const F32 d;
  const I32 di;
  HWY_ALIGN int16_t codes[128 + 8]; // of a group; put_pairs reads on
  for (size_t k = 0; k < inner; k += group, groups += spacing) {
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
      hn::StoreU(hn::DemoteTo(hn::Rebind<int16_t, F32>(), code), hn::Rebind<int16_t, F32>(), codes + i);
      total = hn::Add(total, code);
    }
    groups[0] = 0x1p-14f * power + sum(wrong);
    groups[1] = groups[0] * static_cast<float>(hn::GetLane(hn::SumOfLanes(di, total)));
    put(k, codes);
  }
}

/** The codes c and c + pairs of a word's as one word, for each c. */
template <int Bits>
HWY_INLINE void put_pairs(const int16_t* codes, int32_t* to) {
  constexpr size_t pairs = Word<Bits>::pairs;
#if HWY_TARGET == HWY_SCALAR
  for (size_t c = 0; c < pairs; c++) {
    const auto second = static_cast<uint32_t>(codes[c + pairs]);
    to[c] = (codes[c] & 0xFFFF) | static_cast<int32_t>(second << 16);
  }
#else
  const hn::Full128<int16_t> d;
  for (size_t c = 0; c < pairs; c += 4) {
    HWY_ALIGN int16_t words[8];
    hn::Store(hn::InterleaveLower(d, hn::LoadU(d, codes + c), hn::LoadU(d, codes + c + pairs)), d, words);
    std::memcpy(to + c, words, std::min<size_t>(pairs, 4) * sizeof(int32_t));
  }
#endif
}

#if HWY_MAX_BYTES == 64
/** Blocks 0 and 2, or 1 and 3, of four lanes, of a and then of b. */
HWY_INLINE VI even_blocks(VI a, VI b) {
  return VI{_mm512_shuffle_i32x4(a.raw, b.raw, 0x88)};
}
HWY_INLINE VI odd_blocks(VI a, VI b) {
  return VI{_mm512_shuffle_i32x4(a.raw, b.raw, 0xDD)};
}
#endif

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
  for (size_t i = 0; i < 4; i++) {
    const VI a = even_blocks(tile[i], tile[i + 4]), b = odd_blocks(tile[i], tile[i + 4]);
    const VI c = even_blocks(tile[i + 8], tile[i + 12]), e = odd_blocks(tile[i + 8], tile[i + 12]);
    tile[i] = even_blocks(a, c);
    tile[i + 4] = even_blocks(b, e);
    tile[i + 8] = odd_blocks(a, c);
    tile[i + 12] = odd_blocks(b, e);
  }
#endif
}
#endif

/** Asks for what lies `bytes` after p: the reading jumps from column to column, which hardware doesn't follow. */
HWY_INLINE void prefetch(const void* p, size_t bytes) {
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + bytes));
}

/** The first `count` words at p, then zeros; reads no further. */
HWY_INLINE VI load_first(const int32_t* p, size_t count) {
  const I32 d;
#if HWY_TARGET <= HWY_AVX2
  return hn::MaskedLoad(hn::FirstN(d, count), d, p);
#else // there a masked load reads all of a vector
  int32_t words[lanes] = {};
  std::memcpy(words, p, count * sizeof(int32_t));
  return hn::LoadU(d, words);
#endif
}

/** put(i, words): of `count` columns, `stride` bytes apart, each one's i-th word, for i up to `words`; lanes past the
 * `count`-th hold the last column again. What is wanted next lies `ahead` bytes on. */
template <bool Full, class Put>
HWY_INLINE void
transpose(const uint8_t* from, size_t stride, size_t count, size_t words, size_t ahead, const Put& put) {
  const auto at = [&](size_t n, size_t i) {
    return reinterpret_cast<const int32_t*>(from + (Full || n < count ? n : count - 1) * stride) + i;
  };
  for (size_t i = 0; i < words; i += lanes) {
    Tile tile;
    const size_t used = std::min(lanes, words - i);
    for (size_t n = 0; n < lanes; n++) {
      tile[n] = used == lanes ? hn::LoadU(I32(), at(n, i)) : load_first(at(n, i), used);
      prefetch(at(n, i), ahead);
    }
    transpose(tile);
    for (size_t w = 0; w < lanes; w++) {
      if (w < used) { // a bound of the loop would put the tile into memory
        put(i + w, tile[w]);
      }
    }
  }
}

template <class Put>
HWY_INLINE void
transpose(const uint8_t* from, size_t stride, size_t count, size_t words, size_t ahead, const Put& put) {
  count == lanes ? transpose<true>(from, stride, count, words, ahead, put)
                 : transpose<false>(from, stride, count, words, ahead, put);
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

/** Codes as they lie in memory, those of 3, 5 and 6 bits as bytes. */
struct Packed {
  const uint8_t* from; // columns, `stride` bytes apart
  size_t stride, words; // of a column, 32 bits each
  size_t ahead; // bytes to what is wanted next
};

/** Of a part of w: [groups, lanes]. */
struct ColumnGroups {
  const float* scales;
  const float* biases;
};

// Groups are asked for two vectors of columns ahead: a masked load's vector may reach into the next one's lines,
// and waits for them though it takes nothing of them.

/** Columns' groups: `used` of each column, which lie `groups` apart -> [used, lanes]. */
inline HWY_NOINLINE void open_groups(const float* values, size_t groups, size_t count, size_t used, float* to) {
  const size_t stride = groups * sizeof(float);
  transpose(reinterpret_cast<const uint8_t*>(values), stride, count, used, 2 * lanes * stride, [&](size_t i, VI words) {
    store(hn::BitCast(F32(), words), to + i * lanes);
  });
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
HWY_NOINLINE void open_groups(const T* values, size_t groups, size_t count, size_t used, float* to) {
  const size_t words = (used + 1) / 2;
  const auto* from = reinterpret_cast<const uint8_t*>(values);
  size_t stride = groups * sizeof(T);
  const size_t ahead = 2 * lanes * stride;
  if (groups % 2 != 0) { // a last word has but one value, which may be the memory's last
    auto* memory = reinterpret_cast<uint8_t*>(thread_scratch(scratch::wide, lanes * words));
    from = memory;
    stride = words * sizeof(int32_t);
    for (size_t n = 0; n < count; n++) {
      std::memcpy(memory + n * stride, values + n * groups, used * sizeof(T));
    }
  }
  transpose(from, stride, count, words, ahead, [&](size_t i, VI pair) {
    store_halves(pair, T{}, to + 2 * i * lanes, to + (2 * i + 1) * lanes);
  });
}

inline Packed open_codes(const Factor& factor, size_t inner, const Part& part) {
  const int bits = factor.how.bits;
  const size_t stride = inner / 8 * bits;
  const auto* packed = static_cast<const uint8_t*>(factor.w) + part.first * stride + part.k / 8 * bits;
  if (bits != 3 && bits != 5 && bits != 6) {
    return {packed, stride, part.length * bits / 32, lanes * stride};
  }
  auto* bytes = reinterpret_cast<uint8_t*>(thread_scratch(scratch::bytes, lanes * part.length / 4));
  const auto run = bits == 3 ? &spread<3> : bits == 5 ? &spread<5> : &spread<6>;
  for (size_t n = 0; n < part.count; n++) {
    run(packed + n * stride, part.length, bytes + n * part.length);
  }
  return {bytes, part.length, part.length / 4, 0};
}

inline ColumnGroups column_groups(const Factor& factor, size_t inner, const Part& part) {
  const size_t group = factor.how.group_size, groups = inner / group, used = part.length / group;
  const size_t size = round_up(used, 2 * lanes) * lanes, at = part.first * groups + part.k / group;
  float* scales = thread_scratch(scratch::groups, 2 * size);
  float* biases = scales + size;
  with_type(factor.type, factor.scales, [&](auto* from) { open_groups(from + at, groups, part.count, used, scales); });
  with_type(factor.type, factor.biases, [&](auto* from) { open_groups(from + at, groups, part.count, used, biases); });
  return {scales, biases};
}

/** A group of a column vector's sums goes on. x_group: scale and sum of x. Every row's order of sums. */
HWY_INLINE V add_group(V acc, VI whole, V scale, V bias, const float* x_group) {
  const F32 d;
  acc = hn::MulAdd(hn::ConvertTo(d, whole), hn::Mul(scale, hn::Set(d, x_group[0])), acc);
  return hn::MulAdd(bias, hn::Set(d, x_group[1]), acc);
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#endif
