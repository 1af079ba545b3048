// Matmul by affine codes, in whole numbers. Within a group, w = scale * code + bias, and x is rounded to 16-bit codes
// of a scale of its own, a power of two, so that
//   x . w = scale_x * scale * (codes of x . codes of w) + bias * sum(x).
// The inner sum is exact, whatever its order; groups are summed in one order, so rows stay independent. With 8-bit
// codes of x, as llama.cpp has them, a small model says other things than with its float weights. 16 bits round some
// 200 times finer: a bfloat16 down to 1/128 of its group's largest is kept as it is, and a float16 down to 1/16.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/coded_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/matmul-inl.h"

#include <bit>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

using I32 = hn::RebindToSigned<F32>;
using VI = hn::Vec<I32>;

constexpr size_t most_rows = 8; // of a block

/** sums + the products of a's and b's 16-bit halves, lane by lane. */
HWY_INLINE VI add_products(VI sums, VI a, VI b) {
#if HWY_TARGET == HWY_AVX3
  return hn::Add(sums, VI{_mm512_madd_epi16(a.raw, b.raw)});
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(sums, VI{_mm256_madd_epi16(a.raw, b.raw)});
#elif HWY_TARGET == HWY_SSE2
  return hn::Add(sums, VI{_mm_madd_epi16(a.raw, b.raw)});
#elif HWY_ARCH_ARM_A64
  const auto x = vreinterpretq_s16_s32(a.raw), y = vreinterpretq_s16_s32(b.raw);
  return hn::Add(sums, VI{vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y))});
#else
  const auto low = [](VI v) { return hn::ShiftRight<16>(hn::ShiftLeft<16>(v)); };
  const auto high = [](VI v) { return hn::ShiftRight<16>(v); };
  return hn::Add(sums, hn::Add(hn::Mul(low(a), low(b)), hn::Mul(high(a), high(b))));
#endif
}

/** How codes of `Bits` bits lie in vectors. A step is a vector of them. Class c of a step is every 16/Bits-th code from
 * the c-th on: what a shift by c * Bits leaves in the low bits of all 16-bit words. A lane of a class holds two codes,
 * so a lane of a step holds `per_lane` of them, which follow one another and are of one group. */
template <int Bits>
struct Layout {
  static constexpr size_t classes = 16 / Bits;
  static constexpr size_t per_lane = 2 * classes;
  static constexpr size_t step = per_lane * lanes;
};

/** Rows of x as codes. They lie in blocks of up to `most_rows` rows, so that a strip reads one piece of memory from
 * start to end: for each step, for each row of the block, its classes and then the scale of each lane. */
template <int Bits>
struct CodedRows {
  using L = Layout<Bits>;
  static constexpr size_t unit = (L::classes + 1) * lanes; // of one row's step, in 32-bit words

  size_t steps, sums_stride;
  float* units;
  float* sums; // [rows, groups] of x over each group, with zeros up to a whole vector

  CodedRows(size_t rows, size_t inner, size_t group)
      : steps((inner + L::step - 1) / L::step), sums_stride(round_up(inner / group, lanes)) {
    const size_t padded = round_up(rows, most_rows);
    units = thread_scratch(scratch_x, padded * (steps * unit + sums_stride));
    sums = units + padded * steps * unit;
  }

  /** Of the block that begins with `row`, from the stretch at k on. */
  const float* block(size_t row, size_t rows_of_block, size_t k) const {
    return units + (row * steps + k / L::step * rows_of_block) * unit;
  }
};

/** Rows of a block that has `left` rows: the kinds of strips there are. */
constexpr size_t block_rows(size_t left) {
  return left <= 2 ? left : left <= 4 ? 4 : most_rows;
}

/** One step's codes from their order in K to Layout's. */
template <int Bits>
HWY_INLINE void sort_codes(const int32_t* from, int16_t* to) {
  constexpr size_t classes = Layout<Bits>::classes;
  for (size_t i = 0; i < lanes; i++) {
    const int32_t* lane = from + i * 2 * classes;
    for (size_t c = 0; c < classes; c++) {
      to[c * 2 * lanes + 2 * i] = static_cast<int16_t>(lane[c]);
      to[c * 2 * lanes + 2 * i + 1] = static_cast<int16_t>(lane[c + classes]);
    }
  }
}

/** The greatest power of two that is no greater than x (0 for what is less than the least normal float). */
inline float power_below(float x) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(x) & 0x7F800000u);
}

/** x [inner] of one row to codes: its units, `distance` words apart, and its sums. */
template <int Bits>
void code_row(const float* x, size_t inner, size_t group, float* units, size_t distance, float* sums) {
  using L = Layout<Bits>;
  const F32 d;
  const I32 di;
  HWY_ALIGN int32_t codes[L::step];
  HWY_ALIGN float scales[lanes];
  float scale = 0;
  V factor = hn::Zero(d);
  for (size_t k = 0; k < inner; k += L::step, units += distance) {
    const size_t end = std::min(k + L::step, inner);
    if (end < k + L::step) {
      std::memset(codes, 0, sizeof(codes));
      std::memset(scales, 0, sizeof(scales));
    }
    for (size_t at = k; at < end;) {
      const size_t g = at / group, next = std::min((g + 1) * group, end);
      if (at == g * group) { // else the group began in an earlier step
        V greatest = hn::Zero(d), wrong = hn::Zero(d);
        for (size_t i = at; i < at + group; i += lanes) {
          const V v = load(x + i);
          greatest = hn::Max(greatest, hn::Abs(v));
          wrong = hn::MulAdd(v, hn::Zero(d), wrong); // NaN where v is no number or infinite
        }
        // x / power lies from -2 to 2: 15 bits and a sign.
        const float power = std::max(power_below(hn::GetLane(hn::MaxOfLanes(d, greatest))), 0x1p-100f);
        factor = hn::Set(d, 0x1p14f / power);
        scale = 0x1p-14f * power + sum(wrong);
        sums[g] = 0;
      }
      VI total = hn::Zero(di);
      for (size_t i = at; i < next; i += lanes) {
        const VI code = hn::Min(hn::NearestInt(hn::Mul(load(x + i), factor)), hn::Set(di, 0x7FFF));
        hn::StoreU(code, di, codes + (i - k));
        total = hn::Add(total, code);
      }
      sums[g] += scale * static_cast<float>(hn::GetLane(hn::SumOfLanes(di, total)));
      std::fill(scales + (at - k) / L::per_lane, scales + (next - k) / L::per_lane, scale);
      at = next;
    }
    sort_codes<Bits>(codes, reinterpret_cast<int16_t*>(units));
    store(load(scales), units + L::classes * lanes);
  }
}

template <int Bits>
CodedRows<Bits> code_rows(const MatmulJob& job) {
  const CodedRows<Bits> to(job.rows, job.inner, job.group);
  constexpr size_t unit = CodedRows<Bits>::unit;
  parallel_for((job.rows + most_rows - 1) / most_rows, [&](size_t block) {
    const size_t first = block * most_rows, rows = std::min(most_rows, job.rows - first), all = block_rows(rows);
    float* units = to.units + first * to.steps * unit;
    float* row = thread_scratch(scratch_row, job.inner);
    for (size_t m = 0; m < all; m++) {
      if (m < rows) {
        with_type(job.x_type, job.x, [&](auto* x) { widen(x + (first + m) * job.inner, job.inner, row, 0); });
      } else {
        std::memset(row, 0, job.inner * sizeof(float)); // places of a strip that no row takes
      }
      float* sums = to.sums + (first + m) * to.sums_stride;
      std::memset(sums + to.sums_stride - lanes, 0, lanes * sizeof(float));
      code_row<Bits>(row, job.inner, job.group, units + m * unit, all * unit, sums);
    }
  });
  return to;
}

/** Packed codes of columns in one stretch. */
struct Codes {
  const uint8_t* bytes;
  size_t stride;
  Groups groups;
};

/** A step's codes of one column, a class a vector; zeros past the last. */
template <int Bits>
HWY_INLINE void unpack(const uint8_t* bytes, size_t left, VI (&code)[Layout<Bits>::classes]) {
  const I32 di;
  const VI mask = hn::Set(di, ((1 << Bits) - 1) * 0x10001);
  const auto* from = reinterpret_cast<const int32_t*>(bytes);
  const VI words =
      left >= Layout<Bits>::step ? hn::LoadU(di, from) : hn::MaskedLoad(hn::FirstN(di, left * Bits / 32), di, from);
  code[0] = hn::And(words, mask);
  if constexpr (Bits <= 8) {
    code[1] = hn::And(hn::ShiftRight<Bits>(words), mask);
  }
  if constexpr (Bits <= 4) {
    code[2] = hn::And(hn::ShiftRight<2 * Bits>(words), mask);
    code[3] = hn::And(hn::ShiftRight<3 * Bits>(words), mask);
  }
  if constexpr (Bits <= 2) {
    code[4] = hn::And(hn::ShiftRight<4 * Bits>(words), mask);
    code[5] = hn::And(hn::ShiftRight<5 * Bits>(words), mask);
    code[6] = hn::And(hn::ShiftRight<6 * Bits>(words), mask);
    code[7] = hn::And(hn::ShiftRight<7 * Bits>(words), mask);
  }
}

/** For each lane of a step the place of its group, from the step's first. */
template <int Bits>
HWY_INLINE auto lane_groups(size_t group) {
  using L = Layout<Bits>;
  HWY_ALIGN int32_t places[lanes];
  for (size_t i = 0; i < lanes; i++) {
    places[i] = group < L::step ? static_cast<int32_t>(i * L::per_lane / group) : 0;
  }
  return hn::SetTableIndices(F32(), places);
}

/** sums [rows, count] += x . columns over `length` of K for a block of MR rows, of which the first `rows` are wanted.
 */
template <int Bits, int MR>
HWY_NOINLINE void strip(
    const float* units,
    const float* x_sums,
    size_t x_stride,
    size_t rows,
    const Codes& w,
    size_t count,
    size_t length,
    size_t group,
    float* sums,
    size_t sums_stride) {
  using L = Layout<Bits>;
  constexpr int NR = MR >= 4 ? 1 : 4 / MR; // columns of a tile
  constexpr size_t unit = CodedRows<Bits>::unit;
  const F32 d;
  const I32 di;
  const auto places = lane_groups<Bits>(group);
  const size_t groups = length / group;
  const int group_shift = static_cast<int>(hwy::Num0BitsBelowLS1Bit_Nonzero64(group)); // 32, 64 or 128
  for (size_t first = 0; first < count; first += NR) {
    Groups columns[NR];
    const uint8_t* bytes[NR];
    for (int n = 0; n < NR; n++) {
      const size_t column = HWY_MIN(first + n, count - 1);
      columns[n] = w.groups.of(column);
      bytes[n] = w.bytes + column * w.stride;
    }
    V acc[NR][MR];
    for (int n = 0; n < NR; n++) {
      for (int m = 0; m < MR; m++) {
        acc[n][m] = hn::Zero(d);
      }
    }
    const float* x = units;
    for (size_t k = 0; k < length; k += L::step, x += MR * unit) {
      for (int n = 0; n < NR; n++) {
        VI code[L::classes];
        unpack<Bits>(bytes[n] + k * Bits / 8, length - k, code);
        const V scale = hn::TableLookupLanes(load(columns[n].scales + (k >> group_shift)), places);
        for (int m = 0; m < MR; m++) {
          const float* row = x + m * unit;
          VI products = hn::Zero(di);
          for (size_t c = 0; c < L::classes; c++) {
            products =
                add_products(products, hn::LoadU(di, reinterpret_cast<const int32_t*>(row) + c * lanes), code[c]);
          }
          const V both = hn::Mul(scale, load(row + L::classes * lanes));
          acc[n][m] = hn::MulAdd(hn::ConvertTo(d, products), both, acc[n][m]);
        }
      }
    }
    for (size_t g = 0; g < groups; g += lanes) {
      for (int n = 0; n < NR; n++) {
        V bias = load(columns[n].biases + g);
        if (groups - g < lanes) {
          bias = hn::IfThenElseZero(hn::FirstN(d, groups - g), bias);
        }
        for (int m = 0; m < MR; m++) {
          acc[n][m] = hn::MulAdd(bias, load(x_sums + m * x_stride + g), acc[n][m]);
        }
      }
    }
    float out[NR * MR];
    const auto at = [&](int i) -> V { return acc[i / MR][i % MR]; };
    for (int i = 0; i < NR * MR; i += 4) {
      sum_four(at(i), at(i + 1), at(i + 2), at(i + 3), out + i);
    }
    const size_t used = HWY_MIN(size_t{NR}, count - first);
    for (size_t n = 0; n < used; n++) {
      for (size_t m = 0; m < rows; m++) {
        sums[m * sums_stride + first + n] += out[n * MR + m];
      }
    }
  }
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

/** A part's codes, of 3, 5 and 6 bits as bytes. */
Codes open_codes(const MatmulJob& job, const Part& part) {
  const size_t stride = job.inner / 8 * job.bits;
  const auto* packed = static_cast<const uint8_t*>(job.w) + part.first * stride + part.k / 8 * job.bits;
  const auto groups = open_groups(job, part);
  const auto spread_bits = job.bits == 3 ? &spread<3>
      : job.bits == 5                    ? &spread<5>
      : job.bits == 6                    ? &spread<6>
                                         : nullptr;
  if (!spread_bits) {
    return {packed, stride, groups};
  }
  auto* bytes = reinterpret_cast<uint8_t*>(thread_scratch(scratch_bytes, part.count * spacing / sizeof(float)));
  for (size_t n = 0; n < part.count; n++) {
    spread_bits(packed + n * stride, part.length, bytes + n * spacing);
  }
  return {bytes, spacing, groups};
}

template <int Bits>
void run(const MatmulJob& job) {
  const auto x = code_rows<Bits>(job);
  for_columns(job, max_columns, [&](size_t first, size_t count) {
    float* sums = thread_scratch(scratch_sums, job.rows * count);
    std::memset(sums, 0, job.rows * count * sizeof(float));
    for (size_t k = 0; k < job.inner; k += stretch) {
      const Part part{first, count, k, std::min(stretch, job.inner - k)};
      const Codes w = open_codes(job, part);
      for (size_t m = 0; m < job.rows; m += most_rows) {
        const size_t rows = std::min(most_rows, job.rows - m), all = block_rows(rows);
        const auto strip_of = all == 1 ? &strip<Bits, 1>
            : all == 2                 ? &strip<Bits, 2>
            : all == 4                 ? &strip<Bits, 4>
                                       : &strip<Bits, most_rows>;
        const float* x_sums = x.sums + m * x.sums_stride + k / job.group;
        strip_of(
            x.block(m, all, k), x_sums, x.sums_stride, rows, w, count, part.length, job.group, sums + m * count, count);
      }
    }
    write_sums(job, sums, first, count);
  });
}

void RunCoded(const MatmulJob& job) {
  return job.bits == 2 ? run<2>(job) : job.bits == 4 ? run<4>(job) : run<8>(job);
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(RunCoded);

void run_coded_matmul(const MatmulJob& job) {
  HWY_DYNAMIC_DISPATCH(RunCoded)(job);
}
} // namespace parallm::cpu
#endif
