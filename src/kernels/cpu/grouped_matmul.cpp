#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/quantized.h"

#include <cstring>

namespace parallm::cpu {
namespace {

/** One job over all rows by the first matrix, and how far each next one lies from the last. */
struct GroupedJob {
  MatmulJob all;
  const int32_t* which; // [M] rising
  size_t groups; // E
  size_t w_bytes; // of a group's w, scales (or biases) and bias
  size_t scale_bytes;
  size_t bias_bytes;
  size_t x_bytes; // of a row of x and of out
  size_t out_bytes;

  void run() const {
    const auto at = [](const void* base, size_t bytes) {
      return base ? static_cast<const char*>(base) + bytes : nullptr;
    };
    const Factor& first_factor = all.factors[0];
    for (size_t first = 0, end = 0; first < all.rows; first = end) {
      end = first + 1;
      while (end < all.rows && which[end] == which[first]) {
        end++;
      }
      MatmulJob job = all;
      Factor& factor = job.factors[0];
      job.rows = end - first;
      factor.out = static_cast<char*>(first_factor.out) + first * out_bytes;
      if (which[first] < 0 || size_t(which[first]) >= groups) {
        std::memset(factor.out, 0xFF, job.rows * out_bytes); // a NaN in every float type
        continue;
      }
      const size_t group = which[first];
      job.x = at(all.x, first * x_bytes);
      factor.w = at(first_factor.w, group * w_bytes);
      factor.scales = at(first_factor.scales, group * scale_bytes);
      factor.biases = at(first_factor.biases, group * scale_bytes);
      factor.bias = at(first_factor.bias, group * bias_bytes);
      factor.global_scale = first_factor.global_scale ? first_factor.global_scale + group : nullptr;
      run_matmul(job);
    }
  }
};

/** Inputs: which, x, w, then scales where bits > 0, affine biases, a global scale, and a bias. */
class GroupedMatmul : public CpuPrimitive {
 public:
  GroupedMatmul(Quantized how, bool bias) : how_(how), bias_(bias) {}

  DEFINE_NAME(parallm_grouped_matmul)

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& grouped = static_cast<const GroupedMatmul&>(other);
    return how_ == grouped.how_ && bias_ == grouped.bias_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto in = row_contiguous(inputs, encoder);
    const auto& x = in[1];
    const auto& w = in[2];
    GroupedJob job{};
    job.which = in[0].data<int32_t>();
    job.groups = w.shape(0);
    job.all.rows = x.shape(0);
    job.all.inner = x.shape(1);
    job.all.x = x.data<void>();
    job.all.type = element_type(x);
    size_t next = 2;
    Factor factor = read_factor(in, next, how_, bias_);
    job.w_bytes = w.nbytes() / job.groups;
    job.scale_bytes = how_.bits > 0 ? in[3].nbytes() / job.groups : 0;
    job.bias_bytes = bias_ ? in.back().nbytes() / job.groups : 0;
    job.x_bytes = x.itemsize() * job.all.inner;
    job.out_bytes = x.itemsize() * factor.columns;
    factor.out = allocate(outputs[0]);
    job.all.factors.push_back(factor);
    dispatch(encoder, [job] { job.run(); });
  }

 private:
  Quantized how_;
  bool bias_;
};

mx::array node(
    const char* op,
    std::vector<mx::array> inputs, // which, x, w, ...
    const std::optional<mx::array>& bias,
    Quantized how) {
  const auto& which = inputs[0];
  const auto& x = inputs[1];
  const auto& w = inputs[2];
  if (x.ndim() != 2 || !is_float(x.dtype())) {
    fail_op(op, "x must be [M,K] of a float type; got ", x.shape(), " ", x.dtype());
  }
  if (which.shape() != mx::Shape{x.shape(0)} || which.dtype() != mx::int32) {
    fail_op(op, "which must be int32 [", x.shape(0), "]; got ", which.shape(), " ", which.dtype());
  }
  const int inner = how.bits > 0 ? x.shape(1) * how.bits / 32 : x.shape(1);
  const bool whole = how.bits == 0 || x.shape(1) % how.group_size == 0;
  if (!whole || w.ndim() != 3 || w.shape(2) != inner || w.shape(0) < 1) {
    fail_op(op, "w must be [E,N,", inner, "]; got ", w.shape(), " ", w.dtype());
  }
  const mx::Shape out{x.shape(0), w.shape(1)};
  const auto type = x.dtype();
  if (bias) {
    if (bias->shape() != mx::Shape{w.shape(0), w.shape(1)} || !is_float(bias->dtype())) {
      fail_op(op, "bias must be [E,N] of a float type; got ", bias->shape(), " ", bias->dtype());
    }
    inputs.push_back(*bias);
  }
  return mx::array(out, type, std::make_shared<GroupedMatmul>(how, bias.has_value()), std::move(inputs));
}

} // namespace

mx::array
grouped_matmul(const mx::array& x, const mx::array& w, const mx::array& which, const std::optional<mx::array>& bias) {
  if (!is_float(w.dtype())) {
    fail_op("grouped_matmul", "w must be of a float type; got ", w.dtype());
  }
  return node("grouped_matmul", {which, x, w}, bias, {});
}

mx::array grouped_quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    int group_size,
    int bits,
    const mx::array& which,
    const std::optional<mx::array>& bias,
    const std::string& mode,
    const std::optional<mx::array>& global_scale) {
  const char* op = "grouped_quantized_matmul";
  auto how = quantized(op, mode, group_size, bits);
  how.scaled = global_scale.has_value();
  if (w.ndim() != 3 || w.dtype() != mx::uint32) {
    fail_op(op, "w must be uint32 [E,N,K*bits/32]; got ", w.shape(), " ", w.dtype());
  }
  check_scales(op, {w.shape(0), w.shape(1), x.shape(-1) / group_size}, how, scales, biases, global_scale);
  std::vector<mx::array> inputs{which, x, w, scales};
  if (biases) {
    inputs.push_back(*biases);
  }
  if (global_scale) {
    inputs.push_back(*global_scale);
  }
  return node(op, std::move(inputs), bias, how);
}

} // namespace parallm::cpu
