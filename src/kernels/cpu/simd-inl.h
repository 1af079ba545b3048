// What the SIMD files share: float vectors, loads and stores of the three
// element types, and the register tile of all dot products. Included once for
// each instruction set, after hwy/foreach_target.h.
#include "kernels/cpu/elements.h"
#include "kernels/cpu/threads.h"

#if defined(PARALLM_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef PARALLM_SIMD_INL_H
#undef PARALLM_SIMD_INL_H
#else
#define PARALLM_SIMD_INL_H
#endif

#include <hwy/highway.h>

#include <hwy/contrib/math/math-inl.h>

#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::ScalableTag<float>;
using U32 = hn::RebindToUnsigned<F32>;
using V = hn::Vec<F32>;
using VU = hn::Vec<U32>;
constexpr size_t lanes = HWY_LANES(float);

HWY_INLINE V load(const float* p) {
  return hn::LoadU(F32(), p);
}

HWY_INLINE V load(const hwy::float16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::float16_t, F32>(), p));
}

HWY_INLINE V load(const hwy::bfloat16_t* p) {
  return hn::PromoteTo(F32(), hn::LoadU(hn::Rebind<hwy::bfloat16_t, F32>(), p));
}

HWY_INLINE void store(V v, float* p) {
  hn::StoreU(v, F32(), p);
}

HWY_INLINE void store(V v, hwy::float16_t* p) {
  const hn::Rebind<hwy::float16_t, F32> d16;
  hn::StoreU(hn::DemoteTo(d16, v), d16, p);
}

// Highway truncates to bfloat16; this rounds to nearest even, as MLX does.
HWY_INLINE void store(V v, hwy::bfloat16_t* p) {
  const U32 du;
  const hn::Rebind<uint16_t, F32> d16;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd);
  const auto kept = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), hn::Set(du, 0x7FC00000), rounded);
  const auto high = hn::BitCast(hn::RebindToSigned<U32>(), hn::ShiftRight<16>(kept));
  hn::StoreU(hn::DemoteTo(d16, high), d16, reinterpret_cast<uint16_t*>(p));
}

/** `count` elements to floats; then zeros up to `padded`. */
template <class T>
void widen(const T* from, size_t count, float* to, size_t padded) {
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store(load(from + i), to + i);
  }
  if (i < count) {
    alignas(64) T rest[lanes] = {};
    std::memcpy(rest, from + i, (count - i) * sizeof(T));
    store(load(rest), to + i);
    i += lanes;
  }
  if (i < padded) {
    std::memset(to + i, 0, (padded - i) * sizeof(float));
  }
}

template <class T>
void narrow(const float* from, size_t count, T* to) {
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store(load(from + i), to + i);
  }
  if (i < count) {
    alignas(64) float rest[lanes] = {};
    alignas(64) T stored[lanes];
    std::memcpy(rest, from + i, (count - i) * sizeof(float));
    store(load(rest), stored);
    std::memcpy(to + i, stored, (count - i) * sizeof(T));
  }
}

HWY_INLINE float sum(V v) {
  return hn::GetLane(hn::SumOfLanes(F32(), v));
}

/** silu(gate) * up. */
HWY_INLINE V silu_times(V gate, V up) {
  const F32 d;
  const V e = hn::Exp(d, hn::Min(hn::Neg(gate), hn::Set(d, 88.0f))); // past 104 it gives anything
  return hn::Mul(hn::Div(gate, hn::Add(hn::Set(d, 1.0f), e)), up);
}

/** x / rms(x) * weight, in place; both have zeros from `width` to `padded`. */
inline void norm_row(float* x, const float* weight, size_t width, size_t padded, float eps) {
  V squares = hn::Zero(F32());
  for (size_t i = 0; i < padded; i += lanes) {
    squares = hn::MulAdd(load(x + i), load(x + i), squares);
  }
  const float mean = sum(squares) / static_cast<float>(width);
  const V scale = hn::Set(F32(), 1 / std::sqrt(mean + eps));
  for (size_t i = 0; i < padded; i += lanes) {
    store(hn::Mul(hn::Mul(load(x + i), scale), load(weight + i)), x + i);
  }
}

#if HWY_TARGET == HWY_SCALAR
HWY_INLINE void sum_four(V a, V b, V c, V d, float* out) {
  out[0] = sum(a);
  out[1] = sum(b);
  out[2] = sum(c);
  out[3] = sum(d);
}
#else
HWY_INLINE hn::Vec<hn::Full128<float>> fold(hn::Vec<hn::Full128<float>> v) {
  return v;
}

/** A vector's halves added until 4 lanes are left. */
template <class Wide>
HWY_INLINE hn::Vec<hn::Full128<float>> fold(Wide v) {
  const hn::DFromV<Wide> d;
  return fold(hn::Add(hn::LowerHalf(v), hn::UpperHalf(hn::Half<decltype(d)>(), v)));
}

/** Block b of four lanes: x[b] folded. */
HWY_INLINE V fold_blocks(const V (&x)[lanes / 4]) {
#if HWY_MAX_BYTES == 64
  const auto halves = [](V a, V b) { // of both, added
    return hn::Add(V{_mm512_shuffle_f32x4(a.raw, b.raw, 0x44)}, V{_mm512_shuffle_f32x4(a.raw, b.raw, 0xEE)});
  };
  const V ab = halves(x[0], x[1]), cd = halves(x[2], x[3]);
  return hn::Add(V{_mm512_shuffle_f32x4(ab.raw, cd.raw, 0x88)}, V{_mm512_shuffle_f32x4(ab.raw, cd.raw, 0xDD)});
#elif HWY_MAX_BYTES == 32
  const F32 d;
  return hn::Add(hn::ConcatLowerLower(d, x[1], x[0]), hn::ConcatUpperUpper(d, x[1], x[0]));
#else
  return x[0];
#endif
}

/** Lane 4 * b + n: (l0 + l2) + (l1 + l3) of the four lanes of block b of the n-th vector. */
template <class Words>
HWY_INLINE Words sum_blocks(Words a, Words b, Words c, Words e) {
  const hn::DFromV<Words> d;
  const hn::Repartition<uint64_t, decltype(d)> d2;
  const auto add = [&](Words v, Words w) {
    return hn::BitCast(d2, hn::Add(hn::InterleaveLower(d, v, w), hn::InterleaveUpper(d, v, w)));
  };
  const auto ab = add(a, b), ce = add(c, e);
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(d2, ab, ce)), hn::BitCast(d, hn::InterleaveUpper(d2, ab, ce)));
}

/** out[i] = the sum of the i-th vector's lanes: (l0 + l2) + (l1 + l3), once
 * folded. Four together take half the shuffles of four alone. */
HWY_INLINE void sum_four(V a, V b, V c, V d, float* out) {
  const hn::Full128<float> d4;
  const auto a4 = fold(a), b4 = fold(b), c4 = fold(c), e4 = fold(d);
  const auto ab = hn::Add(hn::InterleaveLower(d4, a4, b4), hn::InterleaveUpper(d4, a4, b4));
  const auto cd = hn::Add(hn::InterleaveLower(d4, c4, e4), hn::InterleaveUpper(d4, c4, e4));
  hn::StoreU(hn::Add(hn::ConcatLowerLower(d4, cd, ab), hn::ConcatUpperUpper(d4, cd, ab)), d4, out);
}
#endif

/** Dense weights [columns, K] for `multiply`. A kind of weights gives columns
 * by number; a column gives its floats, a vector at a time. */
template <class T>
struct Dense {
  static constexpr int most_rows = 4;

  struct Column {
    const T* w;

    HWY_INLINE void begin_group(size_t) {}
    HWY_INLINE V at(size_t k) const {
      return load(w + k);
    }
  };

  const T* w;
  size_t stride;

  HWY_INLINE Column column(size_t n) const {
    return {w + n * stride};
  }
};

/** rows x K floats; K is a whole number of vectors. */
struct Rows {
  const float* data;
  size_t stride;
};

/** out[m][n] = x[m] . column n over `length` (whole vectors and whole groups).
 * Every element is summed in one order, whatever MR and NR are: this is what
 * keeps rows independent, bit for bit. */
template <int MR, int NR, class Column>
HWY_INLINE void
tile(const float* const (&x)[MR], Column (&columns)[NR], size_t length, size_t group, float (&out)[MR][NR]) {
  V acc[MR][NR];
  for (int m = 0; m < MR; m++) {
    for (int n = 0; n < NR; n++) {
      acc[m][n] = hn::Zero(F32());
    }
  }
  for (size_t k = 0, g = 0; k < length; g++) {
    for (int n = 0; n < NR; n++) {
      columns[n].begin_group(g);
    }
    for (const size_t end = k + group; k < end; k += lanes) {
      V w[NR];
      for (int n = 0; n < NR; n++) {
        w[n] = columns[n].at(k);
      }
      for (int m = 0; m < MR; m++) {
        const V xv = load(x[m] + k);
        for (int n = 0; n < NR; n++) {
          acc[m][n] = hn::MulAdd(xv, w[n], acc[m][n]);
        }
      }
    }
  }
  static_assert(MR * NR % 4 == 0);
  const auto at = [&](int i) -> V { return acc[i / NR][i % NR]; };
  for (int i = 0; i < MR * NR; i += 4) {
    sum_four(at(i), at(i + 1), at(i + 2), at(i + 3), &out[0][0] + i);
  }
}

// Columns that share a tile: as many as the registers hold. AVX2 has 16 of
// them, AVX-512 and NEON 32.
constexpr bool many_registers = HWY_MAX_BYTES == 64 || HWY_ARCH_ARM_A64;
constexpr int columns_of(int rows) {
  return rows <= 2 ? 4 : rows <= 4 ? (many_registers ? 4 : 2) : many_registers ? 2 : 1;
}

/** multiply() for up to MR rows. Places of the tile past the last row or column
 * work on the last one again, and are dropped. */
template <int MR, class Weights>
HWY_NOINLINE void strip(
    Rows x,
    int rows,
    const Weights& weights,
    size_t count,
    size_t length,
    size_t group,
    float* sums,
    size_t sums_stride) {
  constexpr int NR = columns_of(MR);
  const float* row[MR];
  for (int m = 0; m < MR; m++) {
    row[m] = x.data + HWY_MIN(m, rows - 1) * x.stride;
  }
  for (size_t first = 0; first < count; first += NR) {
    typename Weights::Column columns[NR];
    for (int n = 0; n < NR; n++) {
      columns[n] = weights.column(HWY_MIN(first + n, count - 1));
    }
    float out[MR][NR];
    tile<MR, NR>(row, columns, length, group, out);
    const int used = static_cast<int>(HWY_MIN(size_t{NR}, count - first));
    for (int m = 0; m < rows; m++) {
      for (int n = 0; n < used; n++) {
        sums[m * sums_stride + first + n] += out[m][n];
      }
    }
  }
}

/** sums [rows, count] += x wᵀ over one stretch of K. */
template <class Weights>
void multiply(
    Rows x,
    size_t rows,
    const Weights& weights,
    size_t count,
    size_t length,
    size_t group,
    float* sums,
    size_t sums_stride) {
  constexpr size_t most = Weights::most_rows;
  for (size_t m = 0; m < rows; m += most) {
    const int used = static_cast<int>(HWY_MIN(most, rows - m));
    const Rows part{x.data + m * x.stride, x.stride};
    const auto run = used == 1 ? &strip<1, Weights>
        : used == 2            ? &strip<2, Weights>
        : used <= 4            ? &strip<4, Weights>
                               : &strip<most, Weights>;
    run(part, used, weights, count, length, group, sums + m * sums_stride, sums_stride);
  }
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#endif
