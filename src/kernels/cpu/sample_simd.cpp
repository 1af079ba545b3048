#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/sample_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/rowwise.h"
#include "kernels/cpu/simd-inl.h"

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/** NaN counts as minus infinity: such a token is never picked while another can
 * be. */
HWY_INLINE V clean(V v) {
  return hn::IfThenElse(hn::IsNaN(v), hn::Set(F32(), minus_infinity), v);
}

/** run(vector, i) over a row; past its end the last vector holds `filler`. */
template <class F>
HWY_INLINE void over(const float* row, size_t width, float filler, F&& run) {
  size_t i = 0;
  for (; i + lanes <= width; i += lanes) {
    run(load(row + i), i);
  }
  if (i < width) {
    alignas(64) float rest[lanes];
    std::fill(rest, rest + lanes, filler);
    std::copy(row + i, row + width, rest);
    run(load(rest), i);
  }
}

float greatest(const float* logits, size_t width) {
  V top = hn::Set(F32(), minus_infinity);
  over(logits, width, minus_infinity, [&](V v, size_t) { top = hn::Max(top, clean(v)); });
  return hn::GetLane(hn::MaxOfLanes(F32(), top));
}

/** The first place of `value`; 0 where there is none (a row of NaN). */
int first_of(const float* logits, size_t width, float value) {
  const float* at = std::find(logits, logits + width, value);
  return at == logits + width ? 0 : static_cast<int>(at - logits);
}

/** A row's tokens by weight w = exp((logit - greatest) / temperature), which is
 * in [0, 1]: such floats are in the order of their bits, so the high bits sort
 * them into bins and only a border's own bin has to be looked at closely. */
class Weights {
 public:
  Weights(const float* logits, size_t width, float top, float temperature)
      : w_(thread_scratch(0, round_up(width, lanes))), width_(width) {
    const F32 d;
    over(logits, width, minus_infinity, [&](V v, size_t i) {
      const V below = hn::Sub(clean(v), hn::Set(d, top));
      const V w = hn::Exp(d, hn::Div(below, hn::Set(d, temperature)));
      store(w, w_ + i);
    });
  }

  /** The least weight that the filters leave in. */
  float border(int top_k, float top_p, float min_p) const {
    const bool cuts_rank = top_k > 0 && static_cast<size_t>(top_k) < width_;
    float border = std::max(min_p, 0.0f);
    if (!cuts_rank && top_p >= 1) {
      return border;
    }
    Bins bins = {};
    for (size_t i = 0; i < width_; i++) {
      auto& bin = bins[bin_of(w_[i])];
      bin.count++;
      bin.mass += w_[i];
    }
    if (cuts_rank) {
      border = std::max(border, kth(bins, top_k));
    }
    return top_p < 1 ? nucleus(bins, border, top_p) : border;
  }

  /** The token where the running sum of weights at or above `border` first
   * exceeds draw * their total. */
  int pick(float border, float draw) const {
    constexpr size_t block = 256;
    std::vector<double> sums;
    double total = 0;
    for (size_t i = 0; i < width_; i += block) {
      V sum_of = hn::Zero(F32());
      over(w_ + i, std::min(block, width_ - i), 0.0f, [&](V w, size_t) {
        const auto stays = hn::Ge(w, hn::Set(F32(), border));
        sum_of = hn::Add(sum_of, hn::IfThenElseZero(stays, w));
      });
      sums.push_back(sum(sum_of));
      total += sums.back();
    }
    const double wanted = draw * total;
    double before = 0;
    size_t chosen = 0;
    for (size_t b = 0; b < sums.size(); b++) {
      chosen = sums[b] > 0 ? b : chosen;
      if (before + sums[b] > wanted) {
        break;
      }
      before += sums[b];
    }
    before = 0;
    for (size_t b = 0; b < chosen; b++) {
      before += sums[b];
    }
    // Rounding may leave the sum just short at the block's end: then its last
    // token is the one.
    int token = 0;
    const size_t end = std::min(width_, (chosen + 1) * block);
    for (size_t i = chosen * block; i < end; i++) {
      if (w_[i] >= border && w_[i] > 0) {
        token = static_cast<int>(i);
        before += w_[i];
        if (before > wanted) {
          break;
        }
      }
    }
    return token;
  }

 private:
  struct Bin {
    size_t count;
    double mass;
  };
  static constexpr size_t bin_count = 1017; // of 1.0f, plus one
  using Bins = std::array<Bin, bin_count>;

  static size_t bin_of(float w) {
    uint32_t bits;
    std::memcpy(&bits, &w, sizeof(bits));
    return bits >> 20;
  }

  /** The weights of a bin at or above `border`, the greatest first. */
  std::vector<float> members(size_t bin, float border) const {
    std::vector<float> found;
    for (size_t i = 0; i < width_; i++) {
      if (bin_of(w_[i]) == bin && w_[i] >= border) {
        found.push_back(w_[i]);
      }
    }
    std::sort(found.begin(), found.end(), std::greater<>());
    return found;
  }

  float kth(const Bins& bins, size_t k) const {
    size_t bin = bin_count - 1;
    for (; bins[bin].count < k; bin--) {
      k -= bins[bin].count;
    }
    return members(bin, 0)[k - 1];
  }

  /** The weight that crosses top_p of the mass at or above `border`. */
  float nucleus(const Bins& bins, float border, float top_p) const {
    const size_t last = bin_of(border);
    double total = 0;
    for (float w : members(last, border)) {
      total += w;
    }
    for (size_t bin = last + 1; bin < bin_count; bin++) {
      total += bins[bin].mass;
    }
    const double wanted = top_p * total;
    double sum = 0;
    size_t bin = bin_count - 1;
    for (; bin > last && sum + bins[bin].mass < wanted; bin--) {
      sum += bins[bin].mass;
    }
    float crossing = border;
    for (float w : members(bin, border)) {
      crossing = w;
      sum += w;
      if (sum >= wanted) {
        break;
      }
    }
    return crossing;
  }

  float* w_;
  size_t width_;
};

int pick_row(const SampleJob& job, size_t row) {
  const float* logits = job.logits + row * job.width;
  const float top = greatest(logits, job.width);
  const float temperature = job.temperature[row];
  if (!(temperature > 0) || std::isinf(top)) {
    return first_of(logits, job.width, top);
  }
  const Weights weights(logits, job.width, top, temperature);
  // The greatest weight is 1: a min_p above it would leave nothing.
  const float border = std::min(1.0f, weights.border(job.top_k[row], job.top_p[row], job.min_p[row]));
  return weights.pick(border, job.draw[row]);
}

void Sample(const SampleJob& job) {
  parallel_for(job.rows, [&](size_t row) { job.out[row] = pick_row(job, row); });
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(Sample);

void run_sample(const SampleJob& job) {
  HWY_DYNAMIC_DISPATCH(Sample)(job);
}
} // namespace parallm::cpu
#endif
