#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/simd-inl.h"

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

// K is summed in stretches of this length, each to one float; the stretches are
// added in order. It keeps a tile's rows and columns in the L1 and L2 caches,
// and is part of the fixed order of the sums.
constexpr size_t stretch = 1024;
constexpr size_t max_columns = 64; // of one chunk of work
constexpr size_t max_direct_rows =
    8; // more rows: w is dequantized once to floats, then shared by all

enum Scratch {
  scratch_x,
  scratch_sums,
  scratch_wide,
  scratch_scales,
  scratch_bytes
};

/** Scale and bias of a column's groups in one stretch. */
struct Groups {
  const float* scales;
  const float* biases;
};

/** A column of 2- or 4-bit weights: uint32 words, the first weight in the
 * lowest bits. */
template <int Bits>
struct PackedColumn {
  static constexpr size_t per_word = 32 / Bits;

  const uint32_t* words;
  Groups groups;
  V scale, bias; // where a table of all 16 values fits in a vector: `scale` is
                 // that table

  static constexpr bool table = Bits == 4 && lanes == 16;

  HWY_INLINE void begin_group(size_t g) {
    const F32 d;
    scale = hn::Set(d, groups.scales[g]);
    bias = hn::Set(d, groups.biases[g]);
    if constexpr (table) {
      scale = hn::MulAdd(hn::Iota(d, 0.0f), scale, bias);
    }
  }

  HWY_INLINE V at(size_t k) const {
    const U32 du;
    const VU shifted = hn::Shr(word(k), shifts(k));
#if HWY_TARGET == HWY_AVX3
    if constexpr (table) {
      // The permutation reads an index's low 4 bits only: no mask is needed.
      return V{_mm512_permutexvar_ps(shifted.raw, scale.raw)};
    }
#endif
    const VU q = hn::And(shifted, hn::Set(du, (1u << Bits) - 1));
    return hn::MulAdd(
        hn::ConvertTo(F32(), hn::BitCast(hn::RebindToSigned<U32>(), q)),
        scale,
        bias);
  }

 private:
  HWY_INLINE VU word(size_t k) const {
    const U32 du;
    const uint32_t* at = words + k / per_word;
    if constexpr (lanes <= per_word) {
      return hn::Set(du, *at);
    } else {
      static_assert(lanes <= 2 * per_word);
      return hn::IfThenElse(
          hn::FirstN(du, per_word), hn::Set(du, at[0]), hn::Set(du, at[1]));
    }
  }

  static HWY_INLINE VU shifts(size_t k) {
    const U32 du;
    const VU lane = hn::Iota(du, static_cast<uint32_t>(k % per_word));
    return hn::ShiftLeft < Bits == 4
        ? 2
        : 1 > (hn::And(lane, hn::Set(du, per_word - 1)));
  }
};

/** A column of 8-bit weights, or of weights that were spread to bytes. */
struct ByteColumn {
  const uint8_t* bytes;
  Groups groups;
  V scale, bias;

  HWY_INLINE void begin_group(size_t g) {
    scale = hn::Set(F32(), groups.scales[g]);
    bias = hn::Set(F32(), groups.biases[g]);
  }

  HWY_INLINE V at(size_t k) const {
    const hn::RebindToSigned<U32> di;
    const auto q =
        hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, F32>(), bytes + k));
    return hn::MulAdd(hn::ConvertTo(F32(), q), scale, bias);
  }
};

/** Widths 3, 5 and 6: 8 weights are a little-endian number of `Bits` bytes.
 * Gives one byte to each weight. */
template <int Bits>
void spread(const uint8_t* packed, size_t count, uint8_t* bytes) {
  constexpr uint64_t mask = (1u << Bits) - 1;
  for (size_t i = 0; i < count; i += 8, packed += Bits) {
    uint64_t v = 0;
    for (int b = 0; b < Bits; b++) {
      v |= static_cast<uint64_t>(packed[b]) << (8 * b);
    }
    for (int j = 0; j < 8; j++) {
      bytes[i + j] = static_cast<uint8_t>((v >> (Bits * j)) & mask);
    }
  }
}

/** Quantized weights of a chunk of columns, one stretch of K at a time. */
template <int Bits>
class QuantizedBlock {
 public:
  explicit QuantizedBlock(const MatmulJob& job) : job_(job) {}

  size_t group() const {
    return job_.group;
  }

  void open(size_t first, size_t count, size_t k, size_t length) {
    first_ = first;
    k_ = k;
    length_ = length;
    groups_ = round_up(length / job_.group, lanes);
    scales_ = thread_scratch(scratch_scales, 2 * count * groups_);
    biases_ = scales_ + count * groups_;
    read_groups(job_.scales, count, scales_);
    read_groups(job_.biases, count, biases_);
    if constexpr (spreads) {
      bytes_ = reinterpret_cast<uint8_t*>(
          thread_scratch(scratch_bytes, count * stretch / sizeof(float)));
      for (size_t n = 0; n < count; n++) {
        spread<Bits>(packed(n), length, bytes_ + n * stretch);
      }
    }
  }

  HWY_INLINE auto column(size_t n) const {
    const Groups groups{scales_ + n * groups_, biases_ + n * groups_};
    if constexpr (spreads) {
      return ByteColumn{bytes_ + n * stretch, groups, {}, {}};
    } else if constexpr (Bits == 8) {
      return ByteColumn{packed(n), groups, {}, {}};
    } else {
      return PackedColumn<Bits>{
          reinterpret_cast<const uint32_t*>(packed(n)), groups, {}, {}};
    }
  }

  void unpack(size_t n, float* to) const {
    auto from = column(n);
    for (size_t k = 0; k < length_;) {
      from.begin_group(k / job_.group);
      for (const size_t end = k + job_.group; k < end; k += lanes) {
        store(from.at(k), to + k);
      }
    }
  }

 private:
  static constexpr bool spreads = Bits == 3 || Bits == 5 || Bits == 6;

  const uint8_t* packed(size_t n) const {
    return static_cast<const uint8_t*>(job_.w) +
        ((first_ + n) * job_.inner + k_) / 8 * Bits;
  }

  void read_groups(const void* from, size_t count, float* to) const {
    const size_t row = job_.inner / job_.group;
    with_type(job_.w_type, from, [&](auto* values) {
      values += first_ * row + k_ / job_.group;
      for (size_t n = 0; n < count; n++) {
        widen(values + n * row, length_ / job_.group, to + n * groups_, 0);
      }
    });
  }

  const MatmulJob& job_;
  size_t first_, k_, length_;
  size_t groups_; // of a column in this stretch, rounded up
  float* scales_;
  float* biases_;
  uint8_t* bytes_ = nullptr;
};

/** The same for dense weights. */
template <class T>
class DenseBlock {
 public:
  explicit DenseBlock(const MatmulJob& job) : job_(job) {}

  size_t group() const {
    return length_;
  }

  void open(size_t first, size_t, size_t k, size_t length) {
    first_ = first;
    k_ = k;
    length_ = length;
  }

  HWY_INLINE auto column(size_t n) const {
    return DenseColumn<T>{at(n)};
  }

  void unpack(size_t n, float* to) const {
    widen(at(n), std::min(length_, job_.inner - k_), to, length_);
  }

 private:
  const T* at(size_t n) const {
    return static_cast<const T*>(job_.w) + (first_ + n) * job_.inner + k_;
  }

  const MatmulJob& job_;
  size_t first_, k_, length_;
};

/** x as floats, K rounded up to whole vectors with zeros. */
struct Rows {
  const float* data;
  size_t stride;
};

Rows float_rows(const MatmulJob& job) {
  const size_t padded = round_up(job.inner, lanes);
  if (job.x_type == Type::f32 && padded == job.inner) {
    return {static_cast<const float*>(job.x), padded};
  }
  float* rows = thread_scratch(scratch_x, job.rows * padded);
  with_type(job.x_type, job.x, [&](auto* x) {
    for (size_t m = 0; m < job.rows; m++) {
      widen(x + m * job.inner, job.inner, rows + m * padded, padded);
    }
  });
  return {rows, padded};
}

void write(const MatmulJob& job, float* sums, size_t first, size_t count) {
  float bias[max_columns + lanes];
  if (job.bias) {
    with_type(job.bias_type, job.bias, [&](auto* values) {
      widen(values + first, count, bias, 0);
    });
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

/** `count` columns from `first`, all rows. */
template <class Block, bool KeepsFloats>
void run_columns(const MatmulJob& job, Rows x, size_t first, size_t count) {
  const bool direct =
      job.inner % lanes == 0 && (KeepsFloats || job.rows <= max_direct_rows);
  Block block(job);
  float* sums = thread_scratch(scratch_sums, job.rows * count);
  std::memset(sums, 0, job.rows * count * sizeof(float));
  for (size_t k = 0; k < x.stride; k += stretch) {
    const size_t length = std::min(stretch, x.stride - k);
    block.open(first, count, k, length);
    if (direct) {
      multiply<KeepsFloats ? 4 : max_direct_rows>(
          x.data + k,
          x.stride,
          job.rows,
          count,
          [&](size_t n) { return block.column(n); },
          length,
          block.group(),
          sums,
          count);
      continue;
    }
    float* wide = thread_scratch(scratch_wide, count * stretch);
    for (size_t n = 0; n < count; n++) {
      block.unpack(n, wide + n * stretch);
    }
    multiply<4>(
        x.data + k,
        x.stride,
        job.rows,
        count,
        [&](size_t n) { return DenseColumn<float>{wide + n * stretch}; },
        length,
        length,
        sums,
        count);
  }
  write(job, sums, first, count);
}

template <class Block, bool KeepsFloats = false>
void run_blocks(const MatmulJob& job) {
  const Rows x = float_rows(job);
  const size_t wanted =
      job.columns / (4 * static_cast<size_t>(threads())); // chunks even out
  const size_t count =
      std::clamp(wanted / 4 * 4, size_t{8}, job.rows > 8 ? 32 : max_columns);
  parallel_for((job.columns + count - 1) / count, [&](size_t chunk) {
    const size_t first = chunk * count;
    run_columns<Block, KeepsFloats>(
        job, x, first, std::min(count, job.columns - first));
  });
}

void Run(const MatmulJob& job) {
  switch (job.bits) {
    case 2:
      return run_blocks<QuantizedBlock<2>>(job);
    case 3:
      return run_blocks<QuantizedBlock<3>>(job);
    case 4:
      return run_blocks<QuantizedBlock<4>>(job);
    case 5:
      return run_blocks<QuantizedBlock<5>>(job);
    case 6:
      return run_blocks<QuantizedBlock<6>>(job);
    case 8:
      return run_blocks<QuantizedBlock<8>>(job);
  }
  switch (job.w_type) {
    case Type::f32:
      return run_blocks<DenseBlock<float>, true>(job);
    case Type::f16:
      return run_blocks<DenseBlock<hwy::float16_t>>(job);
    case Type::bf16:
      return run_blocks<DenseBlock<hwy::bfloat16_t>>(job);
  }
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(Run);

void run_matmul(const MatmulJob& job) {
  HWY_DYNAMIC_DISPATCH(Run)(job);
}
} // namespace parallm::cpu
#endif
