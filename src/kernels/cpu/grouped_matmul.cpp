#include "kernels/cpu/matmul.h"
#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"

namespace parallm::cpu {
namespace {

/** One job over all rows, and how far each group's matrix lies from the last. */
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
    for (size_t first = 0; first < all.rows;) {
      const size_t group = which[first];
      size_t end = first + 1;
      while (end < all.rows && which[end] == which[first]) {
        end++;
      }
      if (which[first] < 0 || group >= groups) {
        fail_op("grouped_matmul", "which must lie from 0 to ", groups - 1, "; got ", which[first]);
      }
      MatmulJob job = all;
      job.rows = end - first;
      job.x = at(all.x, first * x_bytes);
      job.w = at(all.w, group * w_bytes);
      job.scales = at(all.scales, group * scale_bytes);
      job.biases = at(all.biases, group * scale_bytes);
      job.bias = at(all.bias, group * bias_bytes);
      job.out = static_cast<char*>(all.out) + first * out_bytes;
      run_matmul(job);
      first = end;
    }
  }
};

/** Inputs: which, x, w, then scales and biases where bits > 0, then maybe bias. */
class GroupedMatmul : public CpuPrimitive {
 public:
  GroupedMatmul(int group_size, int bits) : group_size_(group_size), bits_(bits) {}

  DEFINE_NAME(parallm_grouped_matmul)

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& same = static_cast<const GroupedMatmul&>(other);
    return group_size_ == same.group_size_ && bits_ == same.bits_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<mx::array> in;
    for (const auto& input : inputs) {
      in.push_back(row_contiguous(input, encoder));
    }
    const auto& x = in[1];
    const auto& w = in[2];
    GroupedJob job{};
    job.which = in[0].data<int32_t>();
    job.groups = w.shape(0);
    job.all.rows = x.shape(0);
    job.all.inner = x.shape(1);
    job.all.columns = w.shape(1);
    job.all.x = x.data<void>();
    job.all.x_type = element_type(x);
    job.all.w = w.data<void>();
    job.all.w_type = element_type(w);
    job.w_bytes = w.nbytes() / job.groups;
    size_t next = 3;
    if (bits_ > 0) {
      job.all.bits = bits_;
      job.all.group = group_size_;
      job.all.w_type = element_type(in[3]);
      job.all.scales = in[3].data<void>();
      job.all.biases = in[4].data<void>();
      job.scale_bytes = in[3].nbytes() / job.groups;
      next = 5;
    }
    if (next < in.size()) {
      job.all.bias = in[next].data<void>();
      job.all.bias_type = element_type(in[next]);
      job.bias_bytes = in[next].nbytes() / job.groups;
    }
    job.x_bytes = x.itemsize() * job.all.inner;
    job.out_bytes = x.itemsize() * job.all.columns;
    job.all.out = allocate(outputs[0]);
    encoder.dispatch([job] { job.run(); });
  }

 private:
  int group_size_;
  int bits_;
};

mx::array node(
    const char* op,
    std::vector<mx::array> inputs, // which, x, w, ...
    const std::optional<mx::array>& bias,
    int group_size,
    int bits) {
  const auto& which = inputs[0];
  const auto& x = inputs[1];
  const auto& w = inputs[2];
  if (x.ndim() != 2 || !is_float(x.dtype())) {
    fail_op(op, "x must be [M,K] of a float type; got ", x.shape(), " ", x.dtype());
  }
  if (which.shape() != mx::Shape{x.shape(0)} || which.dtype() != mx::int32) {
    fail_op(op, "which must be int32 [", x.shape(0), "]; got ", which.shape(), " ", which.dtype());
  }
  const int inner = bits > 0 ? x.shape(1) * bits / 32 : x.shape(1);
  if (w.ndim() != 3 || w.shape(2) != inner || w.shape(0) < 1) {
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
  return mx::array(out, type, std::make_shared<GroupedMatmul>(group_size, bits), std::move(inputs));
}

} // namespace

mx::array
grouped_matmul(const mx::array& x, const mx::array& w, const mx::array& which, const std::optional<mx::array>& bias) {
  if (!is_float(w.dtype())) {
    fail_op("grouped_matmul", "w must be of a float type; got ", w.dtype());
  }
  return node("grouped_matmul", {which, x, w}, bias, 0, 0);
}

mx::array grouped_quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const mx::array& biases,
    int group_size,
    int bits,
    const mx::array& which,
    const std::optional<mx::array>& bias) {
  const char* op = "grouped_quantized_matmul";
  const bool known_bits = bits >= 2 && bits <= 8 && bits != 7;
  const bool known_group = group_size == 16 || group_size == 32 || group_size == 64 || group_size == 128;
  if (!known_bits || !known_group || w.dtype() != mx::uint32) {
    fail_op(
        op,
        "w must be uint32, bits 2, 3, 4, 5, 6 or 8 and group_size 16, 32, 64 or 128; got ",
        w.dtype(),
        ", ",
        bits,
        " and ",
        group_size);
  }
  const mx::Shape groups{w.shape(0), w.shape(1), x.shape(-1) / group_size};
  if (scales.shape() != groups || biases.shape() != groups || !is_float(scales.dtype()) ||
      scales.dtype() != biases.dtype()) {
    fail_op(op, "scales and biases must be ", groups, " of one float type; got ", scales.shape(), ", ", biases.shape());
  }
  return node(op, {which, x, w, scales, biases}, bias, group_size, bits);
}

} // namespace parallm::cpu
