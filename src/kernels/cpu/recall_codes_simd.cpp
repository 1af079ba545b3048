// Keys as codes of 8 bits (recall.h has their layout), made once for a text's memories.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recall_codes_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/recall.h"
#include "kernels/cpu/simd-inl.h"

#include <algorithm>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

template <class P>
void code(const CodesJob& job) {
  constexpr size_t size = code_tile;
  const size_t tiles = code_tiles(job.memories), words = code_words(job.dim);
  const auto unit = [&](size_t g, size_t n, float* to) {
    widen(static_cast<const P*>(job.keys) + (g * job.memories + n) * job.dim, job.dim, to, round_up(job.dim, lanes));
    for (size_t d = 0; d < job.dim; d++) {
      to[d] *= job.inverse_norms[g * job.memories + n];
    }
  };
  parallel_for(job.kv_heads, [&](size_t g) {
    std::vector<float> key(round_up(job.dim, lanes));
    std::vector<double> sums(job.dim);
    for (size_t n = 0; n < job.memories; n++) {
      unit(g, n, key.data());
      for (size_t d = 0; d < job.dim; d++) {
        sums[d] += key[d];
      }
    }
    float* centre = job.centres + g * (job.dim + 2);
    for (size_t d = 0; d < job.dim; d++) {
      centre[d] = static_cast<float>(sums[d] / static_cast<double>(job.memories));
    }
  });
  std::vector<float> residuals(job.kv_heads * tiles), lengths(job.kv_heads * tiles); // the greatest of each tile
  parallel_for(job.kv_heads * tiles, [&](size_t i) {
    const size_t g = i / tiles, first = i % tiles * size;
    const float* centre = job.centres + g * (job.dim + 2);
    uint8_t* codes = job.codes + i * words * size * 4;
    float* scales = job.scales + i * code_scales;
    std::vector<float> key(round_up(job.dim, lanes));
    std::fill(codes, codes + words * size * 4, uint8_t{128});
    std::fill(scales, scales + code_scales, 0.0f);
    double residual = 0, length = 0;
    for (size_t j = 0; j < std::min(size, job.memories - first); j++) {
      unit(g, first + j, key.data());
      float greatest = 0;
      for (size_t d = 0; d < job.dim; d++) {
        key[d] -= centre[d];
        greatest = std::max(greatest, std::abs(key[d]));
      }
      const float scale = std::max(greatest, 1e-20f) / 127;
      double squares = 0, own = 0;
      for (size_t d = 0; d < job.dim; d++) {
        const float exact = key[d] / scale;
        const float code = std::isfinite(exact) ? std::clamp(std::round(exact), -127.0f, 127.0f) : 0;
        squares += double{exact - code} * (exact - code);
        own += double{code} * code;
        codes[(d / 4 * size + j) * 4 + d % 4] = static_cast<uint8_t>(static_cast<int>(code) + 128);
      }
      scales[j] = scale;
      float& most = scales[size + j / code_group];
      most = std::max(most, scale);
      residual = std::isfinite(squares) ? std::max(residual, squares) : INFINITY; // then nothing is ruled out
      length = std::max(length, own);
    }
    residuals[i] = static_cast<float>(std::sqrt(residual));
    lengths[i] = static_cast<float>(std::sqrt(length));
  });
  for (size_t g = 0; g < job.kv_heads; g++) {
    float* bounds = job.centres + g * (job.dim + 2) + job.dim;
    bounds[0] = *std::max_element(&residuals[g * tiles], &residuals[g * tiles] + tiles);
    bounds[1] = *std::max_element(&lengths[g * tiles], &lengths[g * tiles] + tiles);
  }
}

void RunCode(const CodesJob& job) {
  with_type(job.type, job.keys, [&]<class P>(const P*) { code<P>(job); });
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(RunCode);

void run_code(const CodesJob& job) {
  HWY_DYNAMIC_DISPATCH(RunCode)(job);
}
} // namespace parallm::cpu
#endif
