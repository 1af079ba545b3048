#include "kernels/cpu/rowwise.h"
#include "kernels/cpu/fusion.h"
#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/quantized.h"

namespace parallm::cpu {
namespace {

class RmsNorm : public CpuPrimitive {
 public:
  explicit RmsNorm(float eps) : eps_(eps) {}

  DEFINE_NAME(parallm_rms_norm)

  float eps() const {
    return eps_;
  }

  bool is_equivalent(const mx::Primitive& other) const override {
    return eps_ == static_cast<const RmsNorm&>(other).eps_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto x = row_contiguous(inputs[0], encoder);
    const auto weight = row_contiguous(inputs[1], encoder);
    NormJob job{};
    job.rows = x.shape(0);
    job.width = x.shape(1);
    job.x = x.data<void>();
    job.type = element_type(x);
    job.weight = weight.data<void>();
    job.weight_type = element_type(weight);
    job.eps = eps_;
    job.out = allocate(outputs[0]);
    dispatch(encoder, [job] { run_norm(job); });
  }

 private:
  float eps_;
};

class Swiglu : public CpuPrimitive {
 public:
  DEFINE_NAME(parallm_swiglu)
  DEFINE_DEFAULT_IS_EQUIVALENT()

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto gate = row_contiguous(inputs[0], encoder);
    const auto up = row_contiguous(inputs[1], encoder);
    SwigluJob job{};
    job.size = gate.size();
    job.gate = gate.data<void>();
    job.up = up.data<void>();
    job.type = element_type(gate);
    job.out = allocate(outputs[0]);
    dispatch(encoder, [job] { run_swiglu(job); });
  }
};

/** Inputs: ids, w, scales, biases. */
class DequantizeRows : public CpuPrimitive {
 public:
  DequantizeRows(int group_size, int bits) : group_size_(group_size), bits_(bits) {}

  DEFINE_NAME(parallm_dequantize_rows)

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& rows = static_cast<const DequantizeRows&>(other);
    return group_size_ == rows.group_size_ && bits_ == rows.bits_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto in = row_contiguous(inputs, encoder);
    RowsJob job{};
    job.rows = in[0].shape(0);
    job.matrix_rows = in[1].shape(0);
    job.width = outputs[0].shape(1);
    job.group_size = group_size_;
    job.bits = bits_;
    job.ids = in[0].data<int32_t>();
    job.w = in[1].data<void>();
    job.scale_type = element_type(in[2]);
    job.scales = in[2].data<void>();
    job.biases = in[3].data<void>();
    job.type = element_type(outputs[0]);
    job.out = allocate(outputs[0]);
    dispatch(encoder, [job] { run_dequantize_rows(job); });
  }

 private:
  int group_size_, bits_;
};

/** Inputs: logits, temperature, top_k, top_p, min_p, draw. */
class Sample : public CpuPrimitive {
 public:
  DEFINE_NAME(parallm_sample)
  DEFINE_DEFAULT_IS_EQUIVALENT()

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto in = row_contiguous(inputs, encoder);
    SampleJob job{};
    job.rows = in[0].shape(0);
    job.width = in[0].shape(1);
    job.logits = in[0].data<float>();
    job.temperature = in[1].data<float>();
    job.top_k = in[2].data<int32_t>();
    job.top_p = in[3].data<float>();
    job.min_p = in[4].data<float>();
    job.draw = in[5].data<float>();
    job.out = allocate<int32_t>(outputs[0]);
    dispatch(encoder, [job] { run_sample(job); });
  }
};

} // namespace

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  if (x.ndim() != 2 || !is_float(x.dtype()) || weight.shape() != mx::Shape{x.shape(1)} || !is_float(weight.dtype())) {
    fail_op(
        "rms_norm",
        "x must be [M,D] and weight [D] of float types; got ",
        x.shape(),
        " ",
        x.dtype(),
        " and ",
        weight.shape(),
        " ",
        weight.dtype());
  }
  return mx::array(x.shape(), x.dtype(), std::make_shared<RmsNorm>(eps), {x, weight});
}

std::optional<PendingNorm> pending_norm(const mx::array& y) {
  const auto* norm = pending<RmsNorm>(y);
  return norm ? std::optional(PendingNorm{y.inputs()[0], y.inputs()[1], norm->eps()}) : std::nullopt;
}

mx::array swiglu(const mx::array& gate, const mx::array& up) {
  if (!is_float(gate.dtype()) || gate.shape() != up.shape() || gate.dtype() != up.dtype()) {
    fail_op(
        "swiglu",
        "gate and up must have one shape and float type; got ",
        gate.shape(),
        " ",
        gate.dtype(),
        " and ",
        up.shape(),
        " ",
        up.dtype());
  }
  if (auto fused = gated_matmul(gate, up)) {
    return *fused;
  }
  return mx::array(gate.shape(), gate.dtype(), std::make_shared<Swiglu>(), {gate, up});
}

mx::array dequantize_rows(
    const mx::array& ids,
    const mx::array& w,
    const mx::array& scales,
    const mx::array& biases,
    int group_size,
    int bits,
    mx::Dtype dtype) {
  const char* op = "dequantize_rows";
  const auto how = quantized(op, "affine", group_size, bits);
  if (ids.ndim() != 1 || ids.dtype() != mx::int32 || !is_float(dtype)) {
    fail_op(op, "ids must be int32 [T], and dtype a float type; got ", ids.shape(), " ", ids.dtype(), " and ", dtype);
  }
  if (w.ndim() != 2 || w.dtype() != mx::uint32 || w.shape(1) * 32 % bits != 0) {
    fail_op(op, "w must be uint32 [N,K*bits/32]; got ", w.shape(), " ", w.dtype());
  }
  const int width = w.shape(1) * 32 / bits;
  check_scales(op, {w.shape(0), width / group_size}, how, scales, biases, {});
  return mx::array(
      {ids.shape(0), width}, dtype, std::make_shared<DequantizeRows>(group_size, bits), {ids, w, scales, biases});
}

mx::array sample(
    const mx::array& logits,
    const mx::array& temperature,
    const mx::array& top_k,
    const mx::array& top_p,
    const mx::array& min_p,
    const mx::array& draw) {
  if (logits.ndim() != 2 || logits.dtype() != mx::float32 || logits.shape(1) < 1) {
    fail_op("sample", "logits must be float32 [R,V]; got ", logits.shape(), " ", logits.dtype());
  }
  const mx::Shape rows{logits.shape(0)};
  const auto check = [&](const mx::array& a, mx::Dtype type, const char* what) {
    if (a.shape() != rows || a.dtype() != type) {
      fail_op("sample", what, " must be ", type, " ", rows, "; got ", a.shape(), " ", a.dtype());
    }
  };
  check(temperature, mx::float32, "temperature");
  check(top_k, mx::int32, "top_k");
  check(top_p, mx::float32, "top_p");
  check(min_p, mx::float32, "min_p");
  check(draw, mx::float32, "draw");
  return mx::array(rows, mx::int32, std::make_shared<Sample>(), {logits, temperature, top_k, top_p, min_p, draw});
}

} // namespace parallm::cpu
