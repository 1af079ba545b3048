#include "kernels/cpu/fusion.h"
#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/quantized.h"

namespace parallm::cpu {
namespace {

/** What a node's factor is made of, beside its inputs. */
struct Form {
  Quantized how;
  bool bias;

  bool operator==(const Form&) const = default;
};

/** Inputs: x, then the norm's weight where there is one, for each factor w, scales where bits > 0, affine biases, a
 * global scale and a bias where it has one, and at the end the addend. */
class Matmul : public CpuPrimitive {
 public:
  struct Shape {
    std::vector<Form> forms;
    std::optional<float> eps; // of the norm
    bool gated = false;
    bool adds = false;

    bool operator==(const Shape&) const = default;
  };

  explicit Matmul(Shape shape) : shape_(std::move(shape)) {}

  DEFINE_NAME(parallm_matmul)

  const Shape& shape() const {
    return shape_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto in = row_contiguous(inputs, encoder);
    const auto& x = in[0];
    MatmulJob job{};
    job.rows = x.shape(0);
    job.inner = x.size() / std::max<size_t>(job.rows, 1);
    job.x = x.data<void>();
    job.type = element_type(x);
    size_t next = 1;
    if (shape_.eps) {
      job.norm = in[next].data<void>();
      job.norm_type = element_type(in[next++]);
      job.eps = *shape_.eps;
    }
    job.gated = shape_.gated;
    size_t product = 0;
    for (const auto& form : shape_.forms) {
      Factor factor = read_factor(in, next, form.how, form.bias);
      if (product < outputs.size()) {
        factor.out = allocate(outputs[product++]);
      }
      job.factors.push_back(factor);
    }
    if (shape_.adds) {
      job.addend = in[next].data<void>();
    }
    dispatch(encoder, [job = std::move(job)] { run_matmul(job); });
  }

 private:
  Shape shape_;
};

Form form_of(const char* op, const Operand& operand, int inner) {
  const auto& w = operand.w;
  Form form{{}, operand.bias.has_value()};
  if (!operand.scales) {
    if (w.ndim() != 2 || w.shape(1) != inner || !is_float(w.dtype())) {
      fail_op(op, "w must be [N,", inner, "] of a float type; got ", w.shape(), " ", w.dtype());
    }
  } else {
    const int bits = operand.bits, group = operand.group_size;
    form.how = quantized(op, operand.mode, group, bits);
    form.how.scaled = operand.global_scale.has_value();
    if (w.ndim() != 2 || w.dtype() != mx::uint32 || inner % group != 0 || w.shape(1) * 32 != inner * bits) {
      fail_op(
          op,
          "w must be uint32 [N,K*bits/32] with K = ",
          inner,
          ", a multiple of ",
          group,
          "; got ",
          w.shape(),
          " ",
          w.dtype());
    }
    check_scales(op, {w.shape(0), inner / group}, form.how, *operand.scales, operand.biases, operand.global_scale);
  }
  const auto& bias = operand.bias;
  if (bias && (bias->shape() != mx::Shape{w.shape(0)} || !is_float(bias->dtype()))) {
    fail_op(op, "bias must be [", w.shape(0), "] of a float type; got ", bias->shape(), " ", bias->dtype());
  }
  return form;
}

std::vector<mx::array>
node(const char* op, const mx::array& x, const std::vector<Operand>& operands, std::vector<mx::Shape> outs) {
  if (x.ndim() < 2 || !is_float(x.dtype())) {
    fail_op(op, "x must be [M,K] of a float type; got ", x.shape(), " ", x.dtype());
  }
  int inner = 1;
  for (int axis = 1; axis < static_cast<int>(x.ndim()); axis++) {
    inner *= x.shape(axis);
  }
  Matmul::Shape shape;
  std::vector<mx::array> inputs;
  if (const auto norm = pending_norm(x)) {
    shape.eps = norm->eps;
    inputs = {norm->x, norm->weight};
  } else {
    inputs = {x};
  }
  for (size_t i = 0; i < operands.size(); i++) {
    const auto& operand = operands[i];
    shape.forms.push_back(form_of(op, operand, inner));
    inputs.push_back(operand.w);
    for (const auto* part : {&operand.scales, &operand.biases, &operand.global_scale, &operand.bias}) {
      if (*part) {
        inputs.push_back(**part);
      }
    }
    size_t size = 1;
    for (auto dim : outs.at(i)) {
      size *= dim;
    }
    if (size != size_t(x.shape(0)) * operand.w.shape(0)) {
      fail_op(op, "an output of ", x.shape(0), " x ", operand.w.shape(0), " can't be ", outs[i]);
    }
  }
  std::vector<mx::Dtype> types(outs.size(), x.dtype());
  return mx::array::make_arrays(std::move(outs), types, std::make_shared<Matmul>(std::move(shape)), inputs);
}

} // namespace

std::vector<mx::array> matmuls(const mx::array& x, const std::vector<Operand>& operands, std::vector<mx::Shape> outs) {
  return node("matmuls", x, operands, std::move(outs));
}

mx::array matmul(const mx::array& x, const Operand& operand) {
  return node("matmul", x, {operand}, {{x.shape(0), operand.w.shape(0)}})[0];
}

mx::array matmul(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias) {
  return matmul(x, Operand{.w = w, .bias = bias});
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
  return matmul(
      x,
      {.w = w, .scales = scales, .biases = biases, .bias = bias, .group_size = group_size, .bits = bits, .mode = mode});
}

std::optional<mx::array> gated_matmul(const mx::array& gate, const mx::array& up) {
  auto *a = pending<Matmul>(gate), *b = pending<Matmul>(up);
  if (!a || !b || a->shape() != b->shape() || a->shape().forms.size() != 1 || a->shape().adds ||
      gate.shape() != up.shape()) {
    return {};
  }
  auto inputs = gate.inputs();
  const auto& others = up.inputs();
  const size_t shared = a->shape().eps ? 2 : 1; // x, and the norm's weight
  for (size_t i = 0; i < shared; i++) {
    if (inputs[i].id() != others[i].id()) {
      return {};
    }
  }
  const size_t typed = shared + (a->shape().forms[0].how.bits > 0); // w, or its scales
  if (inputs[typed].dtype() != others[typed].dtype()) {
    return {};
  }
  inputs.insert(inputs.end(), others.begin() + shared, others.end());
  auto shape = a->shape();
  shape.forms.push_back(shape.forms[0]);
  shape.gated = true;
  return mx::array(gate.shape(), gate.dtype(), std::make_shared<Matmul>(std::move(shape)), std::move(inputs));
}

mx::array add(const mx::array& x, const mx::array& y) {
  auto* product = pending<Matmul>(y);
  const bool single = product && product->shape().forms.size() == 1 && !product->shape().adds;
  if (!single || x.shape() != y.shape() || x.dtype() != y.dtype()) {
    return mx::add(x, y);
  }
  auto inputs = y.inputs();
  inputs.push_back(x);
  auto shape = product->shape();
  shape.adds = true;
  return mx::array(y.shape(), y.dtype(), std::make_shared<Matmul>(std::move(shape)), std::move(inputs));
}

} // namespace parallm::cpu
