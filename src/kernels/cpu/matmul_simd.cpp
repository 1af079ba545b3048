#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/matmul-inl.h"

#include <array>
#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

// K is summed in stretches of this length, each to one float; the stretches are
// added in order. It keeps a tile's rows and columns in the L1 and L2 caches,
// and is part of the fixed order of the sums.
constexpr size_t stretch = 1024;
constexpr size_t few_rows = 8;
constexpr size_t max_columns = 64; // of one chunk of work
// Distance of a stretch's columns in scratch: not a power of two, as columns
// that far apart would all fall into the same few sets of the L1 cache.
constexpr size_t spacing = stretch + 16;

/** Columns [first, first + count), stretch [k, k + length) of K. */
struct Part {
  size_t first, count, k, length;
};

/** Scales of columns' groups in one stretch, as floats. */
struct Groups {
  const float* scales;
  size_t stride;

  Groups of(size_t n) const {
    return {scales + n * stride, stride};
  }
};

Groups open_groups(const Factor& factor, size_t inner, const Part& part) {
  const size_t group = factor.how.group_size, row = inner / group, used = part.length / group;
  const auto* bytes = static_cast<const uint8_t*>(factor.scales) + part.first * row + part.k / group;
  const float* table = byte_scales(factor.how.mode);
  const float by = factor.global_scale ? *factor.global_scale : 1;
  float* scales = thread_scratch(scratch::groups, part.count * used);
  for (size_t n = 0; n < part.count; n++) {
    std::transform(
        bytes + n * row, bytes + n * row + used, scales + n * used, [=](uint8_t b) { return table[b] * by; });
  }
  return {scales, used};
}

/** A vector's 4-bit weights from `k` on, each in its lane's low 4 bits with others' above them. uint32 words hold 8,
 * the first in the lowest bits. */
HWY_INLINE VU nibbles(const uint32_t* words, size_t k) {
  const U32 du;
  const uint32_t* at = words + k / 8;
  VU word;
  if constexpr (lanes <= 8) {
    word = hn::Set(du, *at);
  } else {
    word = hn::IfThenElse(hn::FirstN(du, 8), hn::Set(du, at[0]), hn::Set(du, at[1]));
  }
  const VU lane = hn::Iota(du, static_cast<uint32_t>(k % 8));
  return hn::Shr(word, hn::ShiftLeft<2>(hn::And(lane, hn::Set(du, 7))));
}

// 0 to 7 as a float of 1 sign, 2 exponent and 1 mantissa bits; 8 to 15 are their negatives.
HWY_ALIGN constexpr float e2m1[16] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};

/** mxfp4's and nvfp4's weights: e2m1 floats. */
struct Fp4 {
  static constexpr int most_rows = 8;

  struct Column {
    const uint32_t* words;
    Groups groups;
    V scale; // where a vector can hold it: the scaled table, else its first 8

    HWY_INLINE Column() {} // an implicit one is not compiled for the target (GCC on ARM)

    HWY_INLINE void begin_group(size_t g) {
      scale = hn::Set(F32(), groups.scales[g]);
#if HWY_TARGET <= HWY_AVX2
      scale = hn::Mul(scale, load(e2m1));
#endif
    }

    HWY_INLINE V at(size_t k) const {
      const U32 du;
      const VU q = nibbles(words, k);
#if HWY_TARGET <= HWY_AVX3
      return V{_mm512_permutexvar_ps(q.raw, scale.raw)};
#elif HWY_TARGET <= HWY_AVX2
      // The permutation reads an index's low 3 bits only; the 4th is the sign.
      const VU sign = hn::And(hn::ShiftLeft<28>(q), hn::Set(du, 0x80000000u));
      return hn::Xor(V{_mm256_permutevar8x32_ps(scale.raw, q.raw)}, hn::BitCast(F32(), sign));
#else
      // Twice the magnitude: m for exponent 0, else (2 + m) << (e - 1).
      const VU one = hn::Set(du, 1), m = hn::And(q, one), e = hn::And(hn::ShiftRight<1>(q), hn::Set(du, 3));
      const VU normal = hn::Shl(hn::Or(hn::Set(du, 2), m), hn::Sub(hn::Max(e, one), one));
      const VU twice = hn::IfThenElse(hn::Eq(e, hn::Zero(du)), m, normal);
      const VU sign = hn::And(hn::ShiftLeft<28>(q), hn::Set(du, 0x80000000u));
      const V half = hn::Mul(hn::ConvertTo(F32(), hn::BitCast(hn::RebindToSigned<U32>(), twice)), hn::Set(F32(), 0.5f));
      return hn::Mul(hn::Xor(half, hn::BitCast(F32(), sign)), scale);
#endif
    }
  };

  const uint32_t* words;
  size_t stride;
  Groups groups;

  HWY_INLINE Column column(size_t n) const {
    Column c;
    c.words = words + n * stride;
    c.groups = groups.of(n);
    return c;
  }
};

/** mxfp8's weights: e4m3 floats (0x7F and 0xFF are no numbers). */
struct Fp8 {
  static constexpr int most_rows = 8;

  struct Column {
    const uint8_t* bytes;
    Groups groups;
    V scale;

    HWY_INLINE Column() {}

    HWY_INLINE void begin_group(size_t g) {
      scale = hn::Set(F32(), groups.scales[g]);
    }

    // Shifted by 7, e4m3's exponent and mantissa are a float16's whose exponent is 8 too low.
    HWY_INLINE V at(size_t k) const {
      const hn::Rebind<uint16_t, F32> d16;
      const auto q = hn::PromoteTo(d16, hn::LoadU(hn::Rebind<uint8_t, F32>(), bytes + k));
      const auto size = hn::And(q, hn::Set(d16, 0x7F));
      const auto sign = hn::ShiftLeft<8>(hn::AndNot(hn::Set(d16, 0x7F), q));
      const hn::Rebind<hwy::float16_t, F32> half;
      const V small = hn::PromoteTo(F32(), hn::BitCast(half, hn::Or(hn::ShiftLeft<7>(size), sign)));
      const V v = hn::Mul(hn::Mul(small, hn::Set(F32(), 256.0f)), scale);
      const auto none = hn::Eq(hn::PromoteTo(U32(), size), hn::Set(U32(), 0x7F));
      return hn::IfThenElse(hn::RebindMask(F32(), none), hn::Set(F32(), NAN), v);
    }
  };

  const uint8_t* bytes;
  size_t stride;
  Groups groups;

  HWY_INLINE Column column(size_t n) const {
    Column c;
    c.bytes = bytes + n * stride;
    c.groups = groups.of(n);
    return c;
  }
};

template <class Weights>
struct Opened; // what of() gives: a part's weights

template <class T>
struct Opened<Dense<T>> {
  static Dense<T> of(const Factor& factor, size_t inner, const Part& part) {
    return {static_cast<const T*>(factor.w) + part.first * inner + part.k, inner};
  }
};

template <>
struct Opened<Fp4> {
  static Fp4 of(const Factor& factor, size_t inner, const Part& part) {
    const auto* words = static_cast<const uint32_t*>(factor.w);
    const size_t stride = inner / 8;
    return {words + part.first * stride + part.k / 8, stride, open_groups(factor, inner, part)};
  }
};

template <>
struct Opened<Fp8> {
  static Fp8 of(const Factor& factor, size_t inner, const Part& part) {
    const auto* bytes = static_cast<const uint8_t*>(factor.w);
    return {bytes + part.first * inner + part.k, inner, open_groups(factor, inner, part)};
  }
};

/** A part's weights as floats, columns `spacing` apart; past `used` zeros. */
template <class Weights>
void unpack(const Weights& weights, const Part& part, size_t group, size_t, float* to) {
  for (size_t n = 0; n < part.count; n++, to += spacing) {
    auto column = weights.column(n);
    for (size_t k = 0, g = 0; k < part.length; g++) {
      column.begin_group(g);
      for (const size_t end = k + group; k < end; k += lanes) {
        store(column.at(k), to + k);
      }
    }
  }
}

template <class T>
void unpack(const Dense<T>& weights, const Part& part, size_t, size_t used, float* to) {
  for (size_t n = 0; n < part.count; n++, to += spacing) {
    widen(weights.w + n * weights.stride, used, to, part.length);
  }
}

/** To what a T holds: a norm that is a node of its own gives T's, and the same row may be normed here or there. */
template <class T>
void round_row(float* row, size_t padded) {
  if constexpr (!std::is_same_v<T, float>) {
    alignas(64) T rounded[lanes];
    for (size_t i = 0; i < padded; i += lanes) {
      store(load(row + i), rounded);
      store(load(rounded), row + i);
    }
  }
}

/** x as floats, normed where the job says so, K rounded up to whole vectors with zeros. Floats are copied too: a tile
 * reads them again and again, so they had better lie aligned, and at a distance that spreads them over the L1 cache's
 * sets. */
FloatRows float_rows(const MatmulJob& job) {
  const size_t padded = round_up(job.inner, lanes);
  const size_t stride = round_up(job.inner, 16) + 16;
  float* rows = thread_scratch(scratch::rows, job.rows * stride + padded);
  float* norm = rows + job.rows * stride;
  if (job.norm) {
    with_type(job.norm_type, job.norm, [&](auto* weight) { widen(weight, job.inner, norm, padded); });
  }
  with_type(job.type, job.x, [&](auto* x) {
    parallel_for((job.rows + few_rows - 1) / few_rows, [&](size_t chunk) {
      const size_t end = std::min(job.rows, (chunk + 1) * few_rows);
      for (size_t m = chunk * few_rows; m < end; m++) {
        float* row = rows + m * stride;
        widen(x + m * job.inner, job.inner, row, padded);
        if (job.norm) {
          norm_row(row, norm, job.inner, padded, job.eps);
          round_row<std::decay_t<decltype(*x)>>(row, padded);
        }
      }
    });
  });
  return {rows, stride};
}

/** `count` columns from `first`, all rows: sums [rows, count]. */
template <class Weights>
void multiply_columns(
    const MatmulJob& job,
    const FloatRows& x,
    const Factor& factor,
    size_t first,
    size_t count,
    float* sums) {
  // For few rows w is widened in registers; for more, once for all of them.
  const bool direct = job.inner % lanes == 0 && job.rows <= few_rows;
  const size_t inner = round_up(job.inner, lanes);
  std::memset(sums, 0, job.rows * count * sizeof(float));
  for (size_t k = 0; k < inner; k += stretch) {
    const Part part{first, count, k, std::min(stretch, inner - k)};
    const size_t group = factor.how.bits ? factor.how.group_size : part.length;
    const Weights weights = Opened<Weights>::of(factor, job.inner, part);
    const Rows rows{x.data + k, x.stride};
    if (direct) {
      multiply(rows, job.rows, weights, count, part.length, group, sums, count);
      continue;
    }
    float* wide = thread_scratch(scratch::wide, count * spacing);
    unpack(weights, part, group, std::min(part.length, job.inner - k), wide);
    multiply(rows, job.rows, Dense<float>{wide, spacing}, count, part.length, part.length, sums, count);
  }
}

template <class Weights>
void run(const MatmulJob& job, const FloatRows& x, const Factor* factors, size_t count) {
  const size_t most = (job.rows > few_rows ? 32 : max_columns) / 4;
  for_columns(factors, job.gated ? 1 : count, 4, most, [&](const Factor& factor, size_t first, size_t columns) {
    make_columns(job, factor, first, columns, columns, job.rows * columns, [&](const Factor& of, float* sums) {
      multiply_columns<Weights>(job, x, of, first, columns, sums);
    });
  });
}

/** Factors of one form. */
void run_alike(const MatmulJob& job, const FloatRows& x, const Factor* factors, size_t count) {
  const auto& how = factors->how;
  if (how.bits > 0 && how.mode == Mode::affine) {
    return run_coded_matmul(job, x, factors, count);
  }
  if (how.bits > 0) {
    return how.bits == 4 ? run<Fp4>(job, x, factors, count) : run<Fp8>(job, x, factors, count);
  }
  with_type(factors->type, factors->w, [&]<class T>(const T*) { run<Dense<T>>(job, x, factors, count); });
}

void Run(const MatmulJob& job) {
  const auto x = float_rows(job);
  const auto& all = job.factors;
  for (size_t first = 0, end = 0; first < all.size(); first = end) {
    while (end < all.size() && all[end].how == all[first].how && all[end].type == all[first].type) {
      end++;
    }
    run_alike(job, x, &all[first], end - first);
  }
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(Run);

namespace {

float e8m0(int byte) {
  return byte == 255 ? INFINITY : std::ldexp(1.0f, byte - 127); // as MLX reads it on CPUs
}

float e4m3(int byte) {
  const int exponent = byte >> 3 & 15, mantissa = byte & 7;
  const float size = (byte & 127) == 127 ? NAN
      : exponent == 0                    ? std::ldexp(float(mantissa), -9)
                                         : std::ldexp(float(8 + mantissa), exponent - 10);
  return byte < 128 ? size : -size;
}

std::array<float, 256> all_bytes(float (*value)(int)) {
  std::array<float, 256> out;
  for (int i = 0; i < 256; i++) {
    out[i] = value(i);
  }
  return out;
}

} // namespace

const float* byte_scales(Mode mode) {
  static const auto powers = all_bytes(e8m0), floats = all_bytes(e4m3);
  return (mode == Mode::nvfp4 ? floats : powers).data();
}

void run_matmul(const MatmulJob& job) {
  if (job.rows == 0) {
    return;
  }
  HWY_DYNAMIC_DISPATCH(Run)(job);
}
} // namespace parallm::cpu
#endif
