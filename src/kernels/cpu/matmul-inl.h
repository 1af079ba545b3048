// What the two matmuls (matmul_simd.cpp, coded_simd.cpp) share: a piece of the work, its groups' scales, and the end of
// a sum. Included once for each instruction set, after hwy/foreach_target.h.
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

// K is summed in stretches of this length, each to one float; the stretches are
// added in order. It keeps a tile's rows and columns in the L1 and L2 caches,
// and is part of the fixed order of the sums.
constexpr size_t stretch = 1024;
constexpr size_t max_columns = 64; // of one chunk of work
// Distance of a stretch's columns in scratch: not a power of two, as columns
// that far apart would all fall into the same few sets of the L1 cache.
constexpr size_t spacing = stretch + 16;
enum Scratch { scratch_x, scratch_sums, scratch_wide, scratch_scales, scratch_bytes, scratch_row };

/** Columns [first, first + count), stretch [k, k + length) of K. */
struct Part {
  size_t first, count, k, length;
};

/** Scales and (affine) biases of columns' groups in one stretch, as floats. A vector may be read from any of them. */
struct Groups {
  const float* scales;
  const float* biases;
  size_t stride;

  Groups of(size_t n) const {
    return {scales + n * stride, biases + n * stride, stride};
  }
};

/** read(from, count, to) turns a column's scales, or biases, into floats. */
template <class T, class Read>
void read_groups(const MatmulJob& job, const Part& part, const T* values, size_t stride, float* to, const Read& read) {
  const size_t row = job.inner / job.group, used = part.length / job.group;
  values += part.first * row + part.k / job.group;
  if (used == row) { // the columns' groups lie in one piece
    return read(values, part.count * row, to);
  }
  for (size_t n = 0; n < part.count; n++) {
    read(values + n * row, used, to + n * stride);
  }
}

inline Groups open_groups(const MatmulJob& job, const Part& part) {
  const size_t used = part.length / job.group;
  const size_t stride = used == job.inner / job.group ? used : round_up(used, lanes);
  const size_t size = round_up(part.count * stride, lanes) + lanes;
  float* scales = thread_scratch(scratch_scales, 2 * size);
  float* biases = scales + size;
  std::memset(biases - 2 * lanes, 0, 2 * lanes * sizeof(float)); // what is read past the last column
  std::memset(biases + size - 2 * lanes, 0, 2 * lanes * sizeof(float));
  if (job.mode == Mode::affine) {
    const auto floats = [](auto* from, size_t count, float* to) { widen(from, count, to, 0); };
    with_type(job.w_type, job.scales, [&](auto* from) { read_groups(job, part, from, stride, scales, floats); });
    with_type(job.w_type, job.biases, [&](auto* from) { read_groups(job, part, from, stride, biases, floats); });
    return {scales, biases, stride};
  }
  const float* table = byte_scales(job.mode);
  const auto look_up = [table](const uint8_t* from, size_t count, float* to) {
    std::transform(from, from + count, to, [table](uint8_t byte) { return table[byte]; });
  };
  read_groups(job, part, static_cast<const uint8_t*>(job.scales), stride, scales, look_up);
  return {scales, biases, stride};
}

/** sums [rows, count] (+ bias) to the job's columns from `first` on. */
inline void write_sums(const MatmulJob& job, float* sums, size_t first, size_t count) {
  float bias[max_columns + lanes];
  if (job.bias) {
    with_type(job.bias_type, job.bias, [&](auto* values) { widen(values + first, count, bias, 0); });
  }
  with_type(job.x_type, job.out, [&](auto* out) {
    for (size_t m = 0; m < job.rows; m++) {
      float* row = sums + m * count;
      for (size_t n = 0; job.bias && n < count; n++) {
        row[n] += bias[n];
      }
      narrow(row, count, out + m * job.columns + first);
    }
  });
}

/** Cuts the columns into chunks for the threads: run(first, count). */
template <class F>
void for_columns(const MatmulJob& job, size_t most, const F& run) {
  const size_t wanted = job.columns / (4 * static_cast<size_t>(threads())); // chunks even out
  const size_t count = std::clamp(wanted / 4 * 4, size_t{8}, most);
  parallel_for((job.columns + count - 1) / count, [&](size_t chunk) {
    const size_t first = chunk * count;
    run(first, std::min(count, job.columns - first));
  });
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#endif
