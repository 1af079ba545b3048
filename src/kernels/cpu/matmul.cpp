#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/quantized.h"

namespace parallm::cpu {
namespace {

/** Inputs: x, w, then scales where bits > 0 and affine biases, then maybe bias. */
class Matmul : public CpuPrimitive {
 public:
  explicit Matmul(Quantized how) : how_(how) {}

  DEFINE_NAME(parallm_matmul)

  bool is_equivalent(const mx::Primitive& other) const override {
    return how_ == static_cast<const Matmul&>(other).how_;
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
    if (how_.bits == 0) {
      job.w_type = element_type(w);
    }
    size_t next = 2;
    if (how_.bits > 0) {
      job.mode = how_.mode;
      job.bits = how_.bits;
      job.group = how_.group_size;
      job.scales = in[next++].data<void>();
      if (how_.mode == Mode::affine) {
        job.w_type = element_type(in[2]);
        job.biases = in[next++].data<void>();
      }
    }
    if (next < in.size()) {
      job.bias = in[next].data<void>();
      job.bias_type = element_type(in[next]);
    }
    job.out = allocate(outputs[0]);
    encoder.dispatch([job] { run_matmul(job); });
  }

 private:
  Quantized how_;
};

void check_rows(const char* op, const mx::array& x) {
  if (x.ndim() != 2 || !is_float(x.dtype())) {
    fail_op(op, "x must be [M,K] of a float type; got ", x.shape(), " ", x.dtype());
  }
}

mx::array
node(const char* op, std::vector<mx::array> inputs, int columns, const std::optional<mx::array>& bias, Quantized how) {
  if (bias) {
    if (bias->shape() != mx::Shape{columns} || !is_float(bias->dtype())) {
      fail_op(op, "bias must be [", columns, "] of a float type; got ", bias->shape(), " ", bias->dtype());
    }
    inputs.push_back(*bias);
  }
  const auto& x = inputs[0];
  return mx::array({x.shape(0), columns}, x.dtype(), std::make_shared<Matmul>(how), std::move(inputs));
}

} // namespace

mx::array matmul(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias) {
  check_rows("matmul", x);
  if (w.ndim() != 2 || w.shape(1) != x.shape(1) || !is_float(w.dtype())) {
    fail_op("matmul", "w must be [N,", x.shape(1), "] of a float type; got ", w.shape(), " ", w.dtype());
  }
  return node("matmul", {x, w}, w.shape(0), bias, {});
}

mx::array quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    int group_size,
    int bits,
    const std::optional<mx::array>& bias,
    const std::string& mode) {
  const char* op = "quantized_matmul";
  check_rows(op, x);
  const int inner = x.shape(1);
  const auto how = quantized(op, mode, group_size, bits);
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
  check_scales(op, {w.shape(0), inner / group_size}, how, scales, biases);
  std::vector<mx::array> inputs{x, w, scales};
  if (biases) {
    inputs.push_back(*biases);
  }
  return node(op, std::move(inputs), w.shape(0), bias, how);
}

} // namespace parallm::cpu
