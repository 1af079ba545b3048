#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rowwise_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/rowwise.h"
#include "kernels/cpu/simd-inl.h"

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

// A chunk of work this small is not worth waking a thread for.
constexpr size_t chunk_elements = 8192;

void Norm(const NormJob& job) {
  const size_t padded = round_up(job.width, lanes);
  float* weight = thread_scratch(0, padded);
  with_type(job.weight_type, job.weight, [&](auto* w) { widen(w, job.width, weight, padded); });
  const auto norm = [&](size_t row) {
    float* x = thread_scratch(1, padded);
    with_type(job.type, job.x, [&](auto* from) { widen(from + row * job.width, job.width, x, padded); });
    norm_row(x, weight, job.width, padded, job.eps);
    with_type(job.type, job.out, [&](auto* to) { narrow(x, job.width, to + row * job.width); });
  };
  const size_t step = std::max<size_t>(1, chunk_elements / padded);
  parallel_for((job.rows + step - 1) / step, [&](size_t chunk) {
    const size_t end = std::min(job.rows, (chunk + 1) * step);
    for (size_t row = chunk * step; row < end; row++) {
      norm(row);
    }
  });
}

template <class T>
void swiglu(const T* gate, const T* up, size_t count, T* out) {
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    store(silu_times(load(gate + i), load(up + i)), out + i);
  }
  if (i < count) {
    alignas(64) float a[lanes], b[lanes];
    widen(gate + i, count - i, a, lanes);
    widen(up + i, count - i, b, lanes);
    store(silu_times(load(a), load(b)), a);
    narrow(a, count - i, out + i);
  }
}

void Swiglu(const SwigluJob& job) {
  parallel_for((job.size + chunk_elements - 1) / chunk_elements, [&](size_t chunk) {
    const size_t first = chunk * chunk_elements;
    const size_t count = std::min(chunk_elements, job.size - first);
    with_type(job.type, job.gate, [&]<class T>(const T* gate) {
      swiglu(gate + first, static_cast<const T*>(job.up) + first, count, static_cast<T*>(job.out) + first);
    });
  });
}

void WeightedSum(const WeightedSumJob& job) {
  const size_t padded = round_up(job.width, lanes);
  const auto add_up = [&](size_t row) {
    float* sums = thread_scratch(0, padded);
    float* term = thread_scratch(1, padded);
    std::memset(sums, 0, padded * sizeof(float));
    for (size_t c = 0; c < job.terms; c++) {
      const size_t place = job.places[row * job.terms + c];
      const V weight = hn::Set(F32(), job.weights[row * job.terms + c]);
      with_type(job.type, job.y, [&](auto* y) { widen(y + place * job.width, job.width, term, padded); });
      for (size_t i = 0; i < padded; i += lanes) {
        store(hn::MulAdd(weight, load(term + i), load(sums + i)), sums + i);
      }
    }
    with_type(job.type, job.out, [&](auto* to) { narrow(sums, job.width, to + row * job.width); });
  };
  const size_t step = std::max<size_t>(1, chunk_elements / (padded * job.terms));
  parallel_for((job.rows + step - 1) / step, [&](size_t chunk) {
    const size_t end = std::min(job.rows, (chunk + 1) * step);
    for (size_t row = chunk * step; row < end; row++) {
      add_up(row);
    }
  });
}

/** A row of codes as floats: of `bits` each, following one another from the low bits on. */
void read_codes(const uint8_t* codes, size_t count, int bits, float* to) {
  if (bits == 8) {
    for (size_t i = 0; i < count; i++) {
      to[i] = codes[i];
    }
    return;
  }
  const uint32_t mask = (1u << bits) - 1;
  uint32_t held = 0;
  for (size_t i = 0, left = 0; i < count; i++, held >>= bits, left -= bits) {
    if (left < static_cast<size_t>(bits)) {
      held |= static_cast<uint32_t>(*codes++) << left;
      left += 8;
    }
    to[i] = static_cast<float>(held & mask);
  }
}

void DequantizeRows(const RowsJob& job) {
  const size_t groups = job.width / job.group_size, row_bytes = job.width / 8 * job.bits;
  const auto read = [&](size_t t) {
    float* scales = thread_scratch(0, 2 * groups);
    float* biases = scales + groups;
    float* x = thread_scratch(1, job.width);
    const auto id = static_cast<uint32_t>(job.ids[t]);
    if (id < job.matrix_rows) {
      const size_t at = id * groups;
      with_type(job.scale_type, job.scales, [&](auto* from) { widen(from + at, groups, scales, 0); });
      with_type(job.scale_type, job.biases, [&](auto* from) { widen(from + at, groups, biases, 0); });
      read_codes(static_cast<const uint8_t*>(job.w) + id * row_bytes, job.width, job.bits, x);
    } else {
      std::fill_n(x, job.width, NAN);
      std::fill_n(scales, 2 * groups, 0.0f);
    }
    for (size_t g = 0; g < groups; g++) {
      float* of = x + g * job.group_size;
      for (size_t i = 0; i < job.group_size; i += lanes) {
        store(hn::MulAdd(load(of + i), hn::Set(F32(), scales[g]), hn::Set(F32(), biases[g])), of + i);
      }
    }
    with_type(job.type, job.out, [&](auto* to) { narrow(x, job.width, to + t * job.width); });
  };
  const size_t step = std::max<size_t>(1, chunk_elements / job.width);
  parallel_for((job.rows + step - 1) / step, [&](size_t chunk) {
    const size_t end = std::min(job.rows, (chunk + 1) * step);
    for (size_t t = chunk * step; t < end; t++) {
      read(t);
    }
  });
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(Norm);
HWY_EXPORT(Swiglu);
HWY_EXPORT(WeightedSum);
HWY_EXPORT(DequantizeRows);

void run_norm(const NormJob& job) {
  HWY_DYNAMIC_DISPATCH(Norm)(job);
}

void run_swiglu(const SwigluJob& job) {
  HWY_DYNAMIC_DISPATCH(Swiglu)(job);
}

void run_weighted_sum(const WeightedSumJob& job) {
  HWY_DYNAMIC_DISPATCH(WeightedSum)(job);
}

void run_dequantize_rows(const RowsJob& job) {
  HWY_DYNAMIC_DISPATCH(DequantizeRows)(job);
}
} // namespace parallm::cpu
#endif
