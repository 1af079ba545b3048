#include "kernels/cpu/matmul.h"
#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"

namespace parallm::cpu {
namespace {

/** Inputs: x, w, then scales and biases where bits > 0, then maybe bias. */
class Matmul : public CpuPrimitive {
 public:
  Matmul(int group_size, int bits) : group_size_(group_size), bits_(bits) {}

  DEFINE_NAME(parallm_matmul)

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& same = static_cast<const Matmul&>(other);
    return group_size_ == same.group_size_ && bits_ == same.bits_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<mx::array> in;
    for (const auto& input : inputs) {
      in.push_back(row_contiguous(input, encoder));
    }
    const auto& x = in[0];
    const auto& w = in[1];
    MatmulJob job{};
    job.rows = x.shape(0);
    job.inner = x.shape(1);
    job.columns = w.shape(0);
    job.x = x.data<void>();
    job.x_type = element_type(x);
    job.w = w.data<void>();
    job.w_type = element_type(w);
    size_t next = 2;
    if (bits_ > 0) {
      job.bits = bits_;
      job.group = group_size_;
      job.w_type = element_type(in[2]);
      job.scales = in[2].data<void>();
      job.biases = in[3].data<void>();
      next = 4;
    }
    if (next < in.size()) {
      job.bias = in[next].data<void>();
      job.bias_type = element_type(in[next]);
    }
    job.out = allocate(outputs[0]);
    encoder.dispatch([job] { run_matmul(job); });
  }

 private:
  int group_size_;
  int bits_;
};

void check_rows(const char* op, const mx::array& x) {
  if (x.ndim() != 2 || !is_float(x.dtype())) {
    fail_op(op, "x must be [M,K] of a float type; got ", x.shape(), " ", x.dtype());
  }
}

mx::array node(
    const char* op,
    std::vector<mx::array> inputs,
    int columns,
    const std::optional<mx::array>& bias,
    int group_size,
    int bits) {
  if (bias) {
    if (bias->shape() != mx::Shape{columns} || !is_float(bias->dtype())) {
      fail_op(op, "bias must be [", columns, "] of a float type; got ", bias->shape(), " ", bias->dtype());
    }
    inputs.push_back(*bias);
  }
  const auto& x = inputs[0];
  return mx::array({x.shape(0), columns}, x.dtype(), std::make_shared<Matmul>(group_size, bits), std::move(inputs));
}

} // namespace

mx::array matmul(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias) {
  check_rows("matmul", x);
  if (w.ndim() != 2 || w.shape(1) != x.shape(1) || !is_float(w.dtype())) {
    fail_op("matmul", "w must be [N,", x.shape(1), "] of a float type; got ", w.shape(), " ", w.dtype());
  }
  return node("matmul", {x, w}, w.shape(0), bias, 0, 0);
}

mx::array quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const mx::array& biases,
    int group_size,
    int bits,
    const std::optional<mx::array>& bias) {
  const char* op = "quantized_matmul";
  check_rows(op, x);
  const int inner = x.shape(1);
  const bool known_bits = bits >= 2 && bits <= 8 && bits != 7;
  const bool known_group = group_size == 16 || group_size == 32 || group_size == 64 || group_size == 128;
  if (!known_bits || !known_group) {
    fail_op(op, "bits must be 2, 3, 4, 5, 6 or 8 and group_size 16, 32, 64 or 128; got ", bits, " and ", group_size);
  }
  if (w.ndim() != 2 || w.dtype() != mx::uint32 || inner % group_size != 0 || w.shape(1) * 32 != inner * bits) {
    fail_op(
        op,
        "w must be uint32 [N,K*bits/32] with K = ",
        inner,
        ", a multiple of ",
        group_size,
        "; got ",
        w.shape(),
        " ",
        w.dtype());
  }
  const mx::Shape groups{w.shape(0), inner / group_size};
  if (scales.shape() != groups || biases.shape() != groups || !is_float(scales.dtype()) ||
      scales.dtype() != biases.dtype()) {
    fail_op(
        op,
        "scales and biases must be ",
        groups,
        " of one float type; got ",
        scales.shape(),
        " ",
        scales.dtype(),
        " and ",
        biases.shape(),
        " ",
        biases.dtype());
  }
  return node(op, {x, w, scales, biases}, w.shape(0), bias, group_size, bits);
}

} // namespace parallm::cpu
