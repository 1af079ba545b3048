// Products of whole numbers, summed in 32 bits. Included once for each instruction set, after hwy/foreach_target.h.
#include "kernels/cpu/simd-inl.h"

#if defined(PARALLM_PRODUCTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef PARALLM_PRODUCTS_INL_H
#undef PARALLM_PRODUCTS_INL_H
#else
#define PARALLM_PRODUCTS_INL_H
#endif

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

using I32 = hn::RebindToSigned<F32>;
using VI = hn::Vec<I32>;

/** sums + the products of w's 16-bit halves with x's. */
HWY_INLINE VI add_products(VI sums, VI w, VI x) {
#if HWY_TARGET <= HWY_AVX3_DL
  asm("vpdpwssd %2, %1, %0" : "+v"(sums.raw) : "v"(w.raw), "v"(x.raw)); // GCC wants more flags for its intrinsic
  return sums;
#elif HWY_TARGET <= HWY_AVX3
  return hn::Add(sums, VI{_mm512_madd_epi16(w.raw, x.raw)});
#elif HWY_TARGET <= HWY_AVX2
  return hn::Add(sums, VI{_mm256_madd_epi16(w.raw, x.raw)});
#elif HWY_ARCH_ARM_A64
  const auto a = vreinterpretq_s16_s32(w.raw), b = vreinterpretq_s16_s32(x.raw);
  return hn::Add(sums, VI{vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b))});
#else
  const auto low = [](VI v) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(v)); };
  const auto high = [](VI v) { return hn::ShiftRight<16>(v); };
  return hn::Add(sums, hn::Add(hn::Mul(low(w), low(x)), hn::Mul(high(w), high(x))));
#endif
}

/** The same with the word at x, for all lanes. */
HWY_INLINE VI add_products(VI sums, VI w, const int32_t* x) {
#if HWY_TARGET <= HWY_AVX3_DL
  asm("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(sums.raw) : "v"(w.raw), "m"(*x));
  return sums;
#else
  return add_products(sums, w, hn::Set(I32(), *x));
#endif
}

#if HWY_TARGET <= HWY_AVX3_DL
/** sums + the products of a's bytes, without a sign, with b's, which have one. */
HWY_INLINE VI add_byte_products(VI sums, VI a, VI b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sums.raw) : "v"(a.raw), "v"(b.raw));
  return sums;
}
#endif

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#endif
