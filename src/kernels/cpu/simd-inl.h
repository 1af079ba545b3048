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
  const auto kept = hn::IfThenElse(
      hn::RebindMask(du, hn::IsNaN(v)), hn::Set(du, 0x7FC00000), rounded);
  const auto high =
      hn::BitCast(hn::RebindToSigned<U32>(), hn::ShiftRight<16>(kept));
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

/** One column of a dense matrix [columns, K], for `tile`. */
template <class T>
struct DenseColumn {
  const T* w;

  void begin_group(size_t) {}
  V at(size_t k) const {
    return load(w + k);
  }
};

/** sums[m][n] += x[m] . column n over `length` (whole vectors and whole
 * groups), for MR rows and NR columns. Every element is summed in one order,
 * whatever MR and NR are: this is what keeps rows independent, bit for bit. */
template <int MR, int NR, class Column>
HWY_INLINE void tile(
    const float* HWY_RESTRICT x,
    size_t x_stride,
    Column (&columns)[NR],
    size_t length,
    size_t group,
    float* HWY_RESTRICT sums,
    size_t sums_stride) {
  V acc[MR][NR];
  for (int m = 0; m < MR; m++) {
    for (int n = 0; n < NR; n++) {
      acc[m][n] = hn::Zero(F32());
    }
  }
  for (size_t k = 0; k < length;) {
    for (int n = 0; n < NR; n++) {
      columns[n].begin_group(k / group);
    }
    for (const size_t end = k + group; k < end; k += lanes) {
      V w[NR];
      for (int n = 0; n < NR; n++) {
        w[n] = columns[n].at(k);
      }
      for (int m = 0; m < MR; m++) {
        const V xv = load(x + m * x_stride + k);
        for (int n = 0; n < NR; n++) {
          acc[m][n] = hn::MulAdd(xv, w[n], acc[m][n]);
        }
      }
    }
  }
  for (int m = 0; m < MR; m++) {
    for (int n = 0; n < NR; n++) {
      sums[m * sums_stride + n] += sum(acc[m][n]);
    }
  }
}

/** tile() over M <= MR rows (exactly MR of them) and any number of columns;
 * column(n) gives one. */
template <int MR, int NR, class Get>
HWY_INLINE void strip(
    const float* x,
    size_t x_stride,
    size_t count,
    const Get& column,
    size_t length,
    size_t group,
    float* sums,
    size_t sums_stride) {
  using Column = decltype(column(size_t{0}));
  size_t n = 0;
  for (; n + NR <= count; n += NR) {
    Column columns[NR];
    for (int j = 0; j < NR; j++) {
      columns[j] = column(n + j);
    }
    tile<MR, NR>(x, x_stride, columns, length, group, sums + n, sums_stride);
  }
  for (; n < count; n++) {
    Column columns[1] = {column(n)};
    tile<MR, 1>(x, x_stride, columns, length, group, sums + n, sums_stride);
  }
}

// Columns that share a tile: as many as the registers hold. AVX2 has 16 of
// them, AVX-512 and NEON 32.
constexpr bool many_registers =
    HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON;
constexpr int columns_of(int rows) {
  return rows <= 2     ? 4
      : rows <= 4      ? (many_registers ? 4 : 2)
      : many_registers ? 2
                       : 1;
}

/** sums [rows, count] += x wᵀ over one stretch of K, MaxRows rows at a time. */
template <int MaxRows, class Get>
HWY_INLINE void multiply(
    const float* x,
    size_t x_stride,
    size_t rows,
    size_t count,
    const Get& column,
    size_t length,
    size_t group,
    float* sums,
    size_t sums_stride) {
  for (; rows > 0;) {
    const auto run = [&]<int MR>(std::integral_constant<int, MR>) {
      strip<MR, columns_of(MR)>(
          x, x_stride, count, column, length, group, sums, sums_stride);
      x += MR * x_stride;
      sums += MR * sums_stride;
      rows -= MR;
    };
    switch (rows < MaxRows ? rows : MaxRows) {
      case 1:
        run(std::integral_constant<int, 1>());
        break;
      case 2:
        run(std::integral_constant<int, 2>());
        break;
      case 3:
        run(std::integral_constant<int, 3>());
        break;
      case 4:
        run(std::integral_constant<int, 4>());
        break;
      case 5:
        run(std::integral_constant<int, HWY_MIN(5, MaxRows)>());
        break;
      case 6:
        run(std::integral_constant<int, HWY_MIN(6, MaxRows)>());
        break;
      case 7:
        run(std::integral_constant<int, HWY_MIN(7, MaxRows)>());
        break;
      default:
        run(std::integral_constant<int, MaxRows>());
        break;
    }
  }
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#endif
