// How matmul_simd.cpp and coded_simd.cpp cut a job's columns into chunks, and end a sum. Included once for each
// instruction set, after hwy/foreach_target.h.
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/simd-inl.h"

#include <algorithm>

#if defined(PARALLM_MATMUL_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef PARALLM_MATMUL_INL_H
#undef PARALLM_MATMUL_INL_H
#else
#define PARALLM_MATMUL_INL_H
#endif

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

/** run(factor, first, count) over the factors' columns in chunks of whole `unit`s, at most `most` of them. */
template <class F>
void for_columns(const Factor* factors, size_t count, size_t unit, size_t most, const F& run) {
  size_t units = 0;
  for (size_t f = 0; f < count; f++) {
    units += (factors[f].columns + unit - 1) / unit;
  }
  // Two chunks for each thread even out what another program takes of one; more would cut short what is read ahead.
  const size_t chunk = unit * std::clamp<size_t>(units / (2 * static_cast<size_t>(threads())), 1, most);
  const auto chunks_of = [&](const Factor& factor) { return (factor.columns + chunk - 1) / chunk; };
  size_t chunks = 0;
  for (size_t f = 0; f < count; f++) {
    chunks += chunks_of(factors[f]);
  }
  parallel_for(chunks, [&](size_t c) {
    const Factor* factor = factors;
    for (; c >= chunks_of(*factor); factor++) {
      c -= chunks_of(*factor);
    }
    run(*factor, c * chunk, std::min(chunk, factor->columns - c * chunk));
  });
}

/** sums [rows, count] += the bias of columns [first, first + count). */
inline void add_bias(const Factor& factor, size_t rows, size_t first, size_t count, float* sums, size_t stride) {
  if (!factor.bias) {
    return;
  }
  with_type(factor.bias_type, factor.bias, [&](auto* values) {
    for (size_t n = 0; n < count; n += lanes) {
      float bias[lanes];
      const size_t used = std::min(lanes, count - n);
      widen(values + first + n, used, bias, 0);
      for (size_t m = 0; m < rows; m++) {
        for (size_t i = 0; i < used; i++) {
          sums[m * stride + n + i] += bias[i];
        }
      }
    }
  });
}

/** Ends columns [first, first + count) of a product: sums [rows, count], `stride` apart. `gate`, where the job is
 * gated: the first factor's sums of the same columns, and `sums` are the second's. */
inline void end_sums(
    const MatmulJob& job,
    const Factor& factor,
    size_t first,
    size_t count,
    const float* sums,
    const float* gate,
    size_t stride) {
  with_type(job.type, factor.out, [&]<class T>(T* out) {
    for (size_t m = 0; m < job.rows; m++) {
      const float* line = sums + m * stride;
      const size_t at = m * factor.columns + first;
      for (size_t n = 0; n < count; n += lanes) {
        const size_t used = std::min(lanes, count - n);
        float rest[lanes];
        const bool whole = used == lanes;
        if (!whole) {
          widen(line + n, used, rest, lanes);
        }
        V v = load(whole ? line + n : rest);
        if (gate) {
          const float* other = gate + m * stride + n;
          if (!whole) {
            widen(other, used, rest, lanes);
          }
          v = silu_times(load(whole ? other : rest), v);
        }
        if (job.addend) {
          const T* addend = static_cast<const T*>(job.addend) + at + n;
          if (whole) {
            v = hn::Add(v, load(addend));
          } else {
            widen(addend, used, rest, lanes);
            v = hn::Add(v, load(rest));
          }
        }
        if (whole) {
          store(v, out + at + n);
        } else {
          store(v, rest);
          narrow(rest, used, out + at + n);
        }
      }
    }
  });
}

/** Columns [first, first + count) of a factor's product, or of what a gated job makes of its two. multiply(factor,
 * sums) gives a factor's sums [rows, count], `stride` apart, in `size` floats. */
template <class F>
void make_columns(
    const MatmulJob& job,
    const Factor& factor,
    size_t first,
    size_t count,
    size_t stride,
    size_t size,
    const F& multiply) {
  float* sums = thread_scratch(scratch::sums, 2 * size);
  const auto sum = [&](const Factor& of, float* to) {
    multiply(of, to);
    add_bias(of, job.rows, first, count, to, stride);
  };
  if (job.gated) {
    sum(job.factors[0], sums + size);
    sum(job.factors[1], sums);
  } else {
    sum(factor, sums);
  }
  end_sums(job, factor, first, count, sums, job.gated ? sums + size : nullptr, stride);
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#endif
