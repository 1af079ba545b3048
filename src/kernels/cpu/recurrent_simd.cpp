// Recurrences over a sequence's tokens, in order: threads share rows and heads
// (or channels), never tokens, so no sum depends on where a call begins or ends.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/recurrent_simd.cpp"
#include "kernels/cpu/targets.h"

#include <hwy/foreach_target.h>

#include "kernels/cpu/recurrent.h"
#include "kernels/cpu/simd-inl.h"

#include <hwy/contrib/math/math-inl.h>

#include <algorithm>
#include <cmath>

HWY_BEFORE_NAMESPACE();
namespace parallm::cpu {
namespace HWY_NAMESPACE {

// A chunk of work this small is not worth waking a thread for.
constexpr size_t chunk_work = 8192;
constexpr size_t most_kernel = 16; // taps of a convolution

HWY_INLINE V silu(V x) {
  const F32 d;
  const V e = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f))); // past 104 it gives anything
  return hn::Div(x, hn::Add(hn::Set(d, 1.0f), e));
}

/** out[c] = bias[c] + sum of weight[j][c] * taps[j][c], the oldest first. */
template <class T>
void conv_token(const ConvJob& job, const T* const* taps, T* out) {
  const size_t channels = job.channels;
  const auto columns = [&](size_t c, auto&& read, auto&& read_weight) {
    V sum = job.bias ? read_weight(job.bias + c) : hn::Zero(F32());
    for (size_t j = 0; j < job.kernel; j++) {
      sum = hn::MulAdd(read_weight(job.weight + j * channels + c), read(taps[j] + c), sum);
    }
    return job.silu ? silu(sum) : sum;
  };
  size_t c = 0;
  for (; c + lanes <= channels; c += lanes) {
    store(
        columns(
            c, [](const T* p) { return load(p); }, [](const float* p) { return load(p); }),
        out + c);
  }
  if (c < channels) {
    const size_t rest = channels - c;
    const auto part = [&](auto* p) {
      alignas(64) float values[lanes];
      widen(p, rest, values, lanes);
      return load(values);
    };
    alignas(64) float values[lanes];
    store(columns(c, part, part), values);
    narrow(values, rest, out + c);
  }
}

template <class T>
void conv(const ConvJob& job) {
  const size_t kept = job.kernel - 1;
  const auto input = [&](size_t b, int64_t t) { // t < 0: kept from before
    const auto* state = static_cast<const T*>(job.state);
    return t >= 0 ? job.x.at<T>(b, t) : state + (b * kept + kept + t) * job.channels;
  };
  const size_t step = std::max<size_t>(1, chunk_work / (job.channels * job.kernel));
  const size_t chunks = (job.length + step - 1) / step;
  parallel_for(job.batch * chunks, [&](size_t item) {
    const size_t b = item / chunks;
    const size_t first = item % chunks * step;
    for (size_t t = first; t < std::min(job.length, first + step); t++) {
      const T* taps[most_kernel];
      for (size_t j = 0; j < job.kernel; j++) {
        taps[j] = input(b, static_cast<int64_t>(t + j) - static_cast<int64_t>(kept));
      }
      conv_token(job, taps, static_cast<T*>(job.out) + (b * job.length + t) * job.channels);
    }
    if (first + step >= job.length) { // the row's last chunk
      for (size_t j = 0; j < kept; j++) {
        const T* from = input(b, static_cast<int64_t>(job.length + j) - static_cast<int64_t>(kept));
        std::memcpy(static_cast<T*>(job.next_state) + (b * kept + j) * job.channels, from, job.channels * sizeof(T));
      }
    }
  });
}

/** What a head does with a token: all float, key_dim padded with zeros to whole
 * vectors, value_dim to a multiple of 4. */
struct Head {
  size_t keys, values; // padded
  float* state; // [values, keys]
  float* q; // [keys]
  float* k;
  float* decay; // [keys]
  float* read; // [keys]
  float* write;
  float* v; // [values]
  float* out;
};

enum class Rule { plain, delta, moves };

/** Four rows of the state: s = s * decay + u kᵀ; out = s q, with u = beta * v,
 * or, by the delta rule, beta * (v - s k) of the decayed s; where it moves, plus
 * (s read) writeᵀ of the s before. */
template <Rule rule>
HWY_INLINE void advance_rows(const Head& head, size_t first, float beta) {
  const F32 d;
  float* rows[4];
  for (size_t r = 0; r < 4; r++) {
    rows[r] = head.state + (first + r) * head.keys;
  }
  constexpr bool delta = rule == Rule::delta, moves = rule == Rule::moves;
  float u[4];
  if (rule != Rule::plain) {
    V seen[4];
    for (V& s : seen) {
      s = hn::Zero(d);
    }
    for (size_t n = 0; n < head.keys; n += lanes) {
      const V decay = load(head.decay + n);
      const V by = load((moves ? head.read : head.k) + n);
      for (size_t r = 0; r < 4; r++) {
        V s = load(rows[r] + n);
        if (delta) {
          s = hn::Mul(s, decay);
          store(s, rows[r] + n);
        }
        seen[r] = hn::MulAdd(s, by, seen[r]);
      }
    }
    sum_four(seen[0], seen[1], seen[2], seen[3], u);
  }
  V sums[4], update[4];
  for (size_t r = 0; r < 4; r++) {
    const float v = head.v[first + r];
    update[r] = hn::Set(d, delta ? (v - u[r]) * beta : v * beta);
    sums[r] = hn::Zero(d);
  }
  for (size_t n = 0; n < head.keys; n += lanes) {
    const V decay = load(head.decay + n);
    const V k = load(head.k + n);
    const V q = load(head.q + n);
    const V write = moves ? load(head.write + n) : q;
    for (size_t r = 0; r < 4; r++) {
      V before = delta ? load(rows[r] + n) : hn::Mul(load(rows[r] + n), decay);
      if (moves) {
        before = hn::MulAdd(hn::Set(d, u[r]), write, before);
      }
      const V s = hn::MulAdd(update[r], k, before);
      store(s, rows[r] + n);
      sums[r] = hn::MulAdd(s, q, sums[r]);
    }
  }
  sum_four(sums[0], sums[1], sums[2], sums[3], head.out + first);
}

void fill_decay(const RecurrenceJob& job, size_t b, size_t t, size_t h, const Head& head) {
  const F32 d;
  if (!job.decay_by_key) {
    const V decay = hn::Set(d, std::exp(*(job.log_decay.at<float>(b, t) + h)));
    for (size_t n = 0; n < head.keys; n += lanes) {
      store(decay, head.decay + n);
    }
    return;
  }
  widen(job.log_decay.at<float>(b, t) + h * job.key_dim, job.key_dim, head.decay, head.keys);
  for (size_t n = 0; n < head.keys; n += lanes) {
    store(hn::Exp(d, load(head.decay + n)), head.decay + n);
  }
}

template <class T>
void run_head(const RecurrenceJob& job, size_t b, size_t h) {
  const size_t keys = round_up(job.key_dim, lanes);
  const size_t values = round_up(job.value_dim, 4);
  float* scratch = thread_scratch(0, values * keys + 5 * keys + 2 * round_up(values, lanes));
  const size_t padded = round_up(values, lanes);
  Head head{keys, values, scratch, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  head.q = scratch + values * keys;
  head.k = head.q + keys;
  head.decay = head.k + keys;
  head.read = head.decay + keys;
  head.write = head.read + keys;
  head.v = head.write + keys;
  head.out = head.v + padded;

  const size_t state = (b * job.heads + h) * job.value_dim * job.key_dim;
  std::memset(scratch, 0, values * keys * sizeof(float));
  for (size_t p = 0; p < job.value_dim; p++) {
    std::memcpy(scratch + p * keys, job.state + state + p * job.key_dim, job.key_dim * sizeof(float));
  }
  const size_t group = h / (job.heads / job.groups);
  for (size_t t = 0; t < job.length; t++) {
    widen(job.q.at<T>(b, t) + group * job.key_dim, job.key_dim, head.q, keys);
    widen(job.k.at<T>(b, t) + group * job.key_dim, job.key_dim, head.k, keys);
    widen(job.v.at<T>(b, t) + h * job.value_dim, job.value_dim, head.v, padded);
    fill_decay(job, b, t, h, head);
    if (job.read.data) {
      widen(job.read.at<T>(b, t) + group * job.key_dim, job.key_dim, head.read, keys);
      widen(job.write.at<T>(b, t) + group * job.key_dim, job.key_dim, head.write, keys);
    }
    const float beta = job.beta.data ? *(job.beta.at<float>(b, t) + h) : 1.0f;
    for (size_t p = 0; p < values; p += 4) {
      job.read.data   ? advance_rows<Rule::moves>(head, p, beta)
          : job.delta ? advance_rows<Rule::delta>(head, p, beta)
                      : advance_rows<Rule::plain>(head, p, beta);
    }
    if (job.skip) {
      const float skip = job.skip[h];
      for (size_t p = 0; p < job.value_dim; p++) {
        head.out[p] += skip * head.v[p];
      }
    }
    T* out = static_cast<T*>(job.out) + ((b * job.length + t) * job.heads + h) * job.value_dim;
    narrow(head.out, job.value_dim, out);
  }
  for (size_t p = 0; p < job.value_dim; p++) {
    std::memcpy(job.next_state + state + p * job.key_dim, scratch + p * keys, job.key_dim * sizeof(float));
  }
}

/** Channel c of row b: s = exp(dt a) s + dt x b; out = s c + skip x. */
template <class T>
void scan_channels(const SelectiveScanJob& job, size_t row, size_t first, size_t count) {
  const F32 d;
  const size_t width = round_up(job.state_dim, lanes);
  float* states = thread_scratch(0, (2 * count + 2) * width);
  float* rates = states + count * width;
  float* b = rates + count * width;
  float* c = b + width;
  for (size_t i = 0; i < count; i++) {
    widen(job.state + (row * job.channels + first + i) * job.state_dim, job.state_dim, states + i * width, width);
    widen(job.a + (first + i) * job.state_dim, job.state_dim, rates + i * width, width);
  }
  for (size_t t = 0; t < job.length; t++) {
    widen(job.b.at<T>(row, t), job.state_dim, b, width);
    widen(job.c.at<T>(row, t), job.state_dim, c, width);
    const float* dts = job.dt.at<float>(row, t) + first;
    alignas(64) float x[lanes];
    alignas(64) float out[lanes];
    widen(job.x.at<T>(row, t) + first, count, x, lanes);
    for (size_t i = 0; i < count; i++) {
      const V dt = hn::Set(d, dts[i]);
      const V update = hn::Set(d, dts[i] * x[i]);
      float* state = states + i * width;
      V total = hn::Zero(d);
      for (size_t n = 0; n < width; n += lanes) {
        const V decay = hn::Exp(d, hn::Mul(dt, load(rates + i * width + n)));
        const V s = hn::MulAdd(update, load(b + n), hn::Mul(load(state + n), decay));
        store(s, state + n);
        total = hn::MulAdd(s, load(c + n), total);
      }
      out[i] = sum(total) + job.skip[first + i] * x[i];
    }
    narrow(out, count, static_cast<T*>(job.out) + (row * job.length + t) * job.channels + first);
  }
  for (size_t i = 0; i < count; i++) {
    narrow(states + i * width, job.state_dim, job.next_state + (row * job.channels + first + i) * job.state_dim);
  }
}

void Conv(const ConvJob& job) {
  with_type(job.type, job.out, [&]<class T>(T*) { conv<T>(job); });
}

void Recurrence(const RecurrenceJob& job) {
  with_type(job.type, job.out, [&]<class T>(T*) {
    parallel_for(job.batch * job.heads, [&](size_t n) { run_head<T>(job, n / job.heads, n % job.heads); });
  });
}

void SelectiveScan(const SelectiveScanJob& job) {
  const size_t chunks = (job.channels + lanes - 1) / lanes;
  with_type(job.type, job.out, [&]<class T>(T*) {
    parallel_for(job.batch * chunks, [&](size_t n) {
      const size_t first = n % chunks * lanes;
      scan_channels<T>(job, n / chunks, first, std::min(lanes, job.channels - first));
    });
  });
}

void LinearScan(const LinearScanJob& job) {
  const F32 d;
  const size_t chunks = (job.channels + lanes - 1) / lanes;
  parallel_for(job.batch * chunks, [&](size_t item) {
    const size_t b = item / chunks;
    const size_t first = item % chunks * lanes;
    const size_t count = std::min(lanes, job.channels - first);
    alignas(64) float part[lanes];
    const auto read = [&](const float* from) {
      widen(from, count, part, lanes);
      return load(part);
    };
    const auto write = [&](V v, float* to) {
      store(v, part);
      narrow(part, count, to);
    };
    V state = read(job.state + b * job.channels + first);
    for (size_t t = 0; t < job.length; t++) {
      const V decay = hn::Exp(d, read(job.log_decay.at<float>(b, t) + first));
      state = hn::MulAdd(state, decay, read(job.x.at<float>(b, t) + first));
      write(state, job.out + (b * job.length + t) * job.channels + first);
    }
    write(state, job.next_state + b * job.channels + first);
  });
}

} // namespace HWY_NAMESPACE
} // namespace parallm::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace parallm::cpu {
HWY_EXPORT(Conv);
HWY_EXPORT(Recurrence);
HWY_EXPORT(SelectiveScan);
HWY_EXPORT(LinearScan);

void run_conv(const ConvJob& job) {
  HWY_DYNAMIC_DISPATCH(Conv)(job);
}

void run_recurrence(const RecurrenceJob& job) {
  HWY_DYNAMIC_DISPATCH(Recurrence)(job);
}

void run_selective_scan(const SelectiveScanJob& job) {
  HWY_DYNAMIC_DISPATCH(SelectiveScan)(job);
}

void run_linear_scan(const LinearScanJob& job) {
  HWY_DYNAMIC_DISPATCH(LinearScan)(job);
}
} // namespace parallm::cpu
#endif
