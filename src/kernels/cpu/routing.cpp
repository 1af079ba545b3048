// Which matrix each row goes to, and back (ops.h): small integer work that MLX's sorts would take many ops for.
#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/rowwise.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace parallm::cpu {
namespace {

/** NaN comes last. */
bool beats(float a, float b) {
  return a > b || (std::isnan(b) && !std::isnan(a));
}

struct GreatestJob {
  size_t rows, width, k;
  const float* scores;
  int32_t* out;

  /** One pass with the k greatest so far at hand, in order: k is small, and few scores get in. */
  void run() const {
    std::vector<float> best(k);
    for (size_t row = 0; row < rows; row++) {
      const float* x = scores + row * width;
      int32_t* places = out + row * k;
      size_t have = 0;
      for (size_t i = 0; i < width; i++) {
        const float value = x[i];
        if (have == k && !beats(value, best[k - 1])) {
          continue;
        }
        size_t at = have < k ? have++ : k - 1;
        for (; at > 0 && beats(value, best[at - 1]); at--) {
          best[at] = best[at - 1];
          places[at] = places[at - 1];
        }
        best[at] = value;
        places[at] = static_cast<int32_t>(i);
      }
    }
  }
};

class Greatest : public CpuPrimitive {
 public:
  explicit Greatest(int k) : k_(k) {}

  DEFINE_NAME(parallm_greatest)

  bool is_equivalent(const mx::Primitive& other) const override {
    return k_ == static_cast<const Greatest&>(other).k_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto scores = row_contiguous(inputs[0], encoder);
    GreatestJob job{};
    job.rows = scores.shape(0);
    job.width = scores.shape(1);
    job.k = k_;
    job.scores = scores.data<float>();
    job.out = allocate<int32_t>(outputs[0]);
    dispatch(encoder, [job] { job.run(); });
  }

 private:
  int k_;
};

struct OrderJob {
  size_t entries, row_length, count;
  const int32_t* from;
  int32_t* rows;
  int32_t* groups;
  int32_t* places;

  /** A counting sort. An entry of no group goes to the last one's end, with its own number, which no matrix has. */
  void run() const {
    std::vector<int32_t> next(count + 2);
    const auto bin = [&](int32_t group) { return group >= 0 && size_t(group) < count ? size_t(group) : count; };
    for (size_t i = 0; i < entries; i++) {
      next[bin(from[i]) + 1]++;
    }
    std::partial_sum(next.begin(), next.end(), next.begin());
    for (size_t i = 0; i < entries; i++) {
      const int32_t place = next[bin(from[i])]++;
      places[i] = place;
      rows[place] = static_cast<int32_t>(i / row_length);
      groups[place] = from[i];
    }
  }
};

class OrderByGroup : public CpuPrimitive {
 public:
  explicit OrderByGroup(int count) : count_(count) {}

  DEFINE_NAME(parallm_order_by_group)

  bool is_equivalent(const mx::Primitive& other) const override {
    return count_ == static_cast<const OrderByGroup&>(other).count_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto groups = row_contiguous(inputs[0], encoder);
    OrderJob job{};
    job.entries = groups.size();
    job.row_length = std::max(groups.shape(1), 1);
    job.count = count_;
    job.from = groups.data<int32_t>();
    job.rows = allocate<int32_t>(outputs[0]);
    job.groups = allocate<int32_t>(outputs[1]);
    job.places = allocate<int32_t>(outputs[2]);
    dispatch(encoder, [job] { job.run(); });
  }

 private:
  int count_;
};

/** Inputs: y, places, weights. */
class WeightedSum : public CpuPrimitive {
 public:
  DEFINE_NAME(parallm_weighted_sum)
  DEFINE_DEFAULT_IS_EQUIVALENT()

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto y = row_contiguous(inputs[0], encoder);
    const auto places = row_contiguous(inputs[1], encoder);
    const auto weights = row_contiguous(inputs[2], encoder);
    WeightedSumJob job{};
    job.rows = weights.shape(0);
    job.terms = weights.shape(1);
    job.width = y.shape(1);
    job.y = y.data<void>();
    job.type = element_type(y);
    job.places = places.data<int32_t>();
    job.weights = weights.data<float>();
    job.out = allocate(outputs[0]);
    dispatch(encoder, [job] { run_weighted_sum(job); });
  }
};

} // namespace

mx::array greatest(const mx::array& scores, int k) {
  if (scores.ndim() != 2 || scores.dtype() != mx::float32 || k < 1 || k > scores.shape(1)) {
    fail_op(
        "greatest", "scores must be float32 [T,E] with E at least ", k, "; got ", scores.shape(), " ", scores.dtype());
  }
  return mx::array({scores.shape(0), k}, mx::int32, std::make_shared<Greatest>(k), {scores});
}

GroupOrder order_by_group(const mx::array& groups, int count) {
  if (groups.ndim() != 2 || groups.dtype() != mx::int32 || count < 1) {
    fail_op("order_by_group", "groups must be int32 [T,k]; got ", groups.shape(), " ", groups.dtype());
  }
  const mx::Shape entries{int(groups.size())};
  auto out = mx::array::make_arrays(
      {entries, entries, entries}, {mx::int32, mx::int32, mx::int32}, std::make_shared<OrderByGroup>(count), {groups});
  return {out[0], out[1], out[2]};
}

mx::array weighted_sum(const mx::array& y, const mx::array& places, const mx::array& weights) {
  const char* op = "weighted_sum";
  if (y.ndim() != 2 || !is_float(y.dtype())) {
    fail_op(op, "y must be [M,N] of a float type; got ", y.shape(), " ", y.dtype());
  }
  if (weights.ndim() != 2 || weights.shape(1) < 1 || weights.dtype() != mx::float32) {
    fail_op(op, "weights must be float32 [T,k]; got ", weights.shape(), " ", weights.dtype());
  }
  if (places.shape() != mx::Shape{int(weights.size())} || places.dtype() != mx::int32) {
    fail_op(op, "places must be int32 [", weights.size(), "]; got ", places.shape(), " ", places.dtype());
  }
  return mx::array({weights.shape(0), y.shape(1)}, y.dtype(), std::make_shared<WeightedSum>(), {y, places, weights});
}

} // namespace parallm::cpu
