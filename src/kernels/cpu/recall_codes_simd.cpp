// Keys as codes of 6 bits (recall.h has their layout), made once for a text's memories.
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
  const size_t tiles = code_tiles(job.memories), bytes = 3 * code_parts(job.dim) * code_tile * 4; // of a tile
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
    const size_t g = i / tiles, first = i % tiles * code_tile, dim = round_up(job.dim, lanes);
    const size_t count = std::min(code_tile, job.memories - first);
    const float* centre = job.centres + g * (job.dim + 2);
    uint8_t* codes = job.codes + i * bytes;
    float* scales = job.scales + i * code_scales;
    std::vector<float> keys(code_tile * dim);
    std::fill(codes, codes + bytes, uint8_t{0});
    std::fill(scales, scales + code_scales, 0.0f);
    for (size_t j = 0; j < count; j++) {
      float* key = &keys[j * dim];
      unit(g, first + j, key);
      float& scale = scales[j / code_group];
      scale = std::max(scale, 1e-20f);
      for (size_t d = 0; d < job.dim; d++) {
        key[d] -= centre[d];
        scale = std::max(scale, std::abs(key[d]) / 31);
      }
    }
    double residual = 0, length = 0;
    for (size_t j = 0; j < count; j++) {
      double squares = 0, own = 0;
      for (size_t d = 0; d < job.dim; d++) {
        const float exact = keys[j * dim + d] / scales[j / code_group];
        const float code = std::isfinite(exact) ? std::clamp(std::round(exact), -31.0f, 31.0f) : 0;
        squares += double{exact - code} * (exact - code);
        own += double{code} * code;
        const size_t place = d % 16, byte = d % 4;
        const auto bits = static_cast<unsigned>(static_cast<int>(code) + 32);
        const auto word = [&](size_t w) -> uint8_t& { return codes[((d / 16 * 3 + w) * code_tile + j) * 4 + byte]; };
        if (place < 12) {
          word(place / 4) |= bits;
        } else {
          for (size_t w = 0; w < 3; w++) {
            word(w) |= (bits >> (2 * w) & 3) << 6;
          }
        }
      }
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
