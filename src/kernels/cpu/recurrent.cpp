#include "kernels/cpu/recurrent.h"
#include "kernels/cpu/node.h"
#include "kernels/cpu/recurrent_ops.h"

namespace parallm::cpu {
namespace {

/** Inputs of one evaluation, kept until its task is done. */
class Inputs {
 public:
  Inputs(const std::vector<mx::array>& inputs, mx::cpu::CommandEncoder& encoder) : inputs_(inputs), encoder_(encoder) {}

  /** [B,L,...] as it lies, or a copy where its last axes are not packed. */
  Tokens tokens(size_t i) {
    const mx::array& a = inputs_[i];
    int64_t packed = 1;
    bool fits = true;
    for (int axis = a.ndim() - 1; axis >= 2; axis--) {
      fits = fits && (a.shape(axis) == 1 || a.strides(axis) == packed);
      packed *= a.shape(axis);
    }
    if (fits) {
      return {a.data<void>(), a.strides(0), a.strides(1)};
    }
    const mx::array copy = row_contiguous(a, encoder_);
    return {copy.data<void>(), packed * a.shape(1), packed};
  }

  template <class T = void>
  const T* packed(size_t i) {
    return row_contiguous(inputs_[i], encoder_).data<T>();
  }

 private:
  const std::vector<mx::array>& inputs_;
  mx::cpu::CommandEncoder& encoder_;
};

/** The memory of a new state: the old one's, where nobody else reads that. */
float* next_state(const mx::array& state, mx::array& next) {
  if (state.is_donatable() && state.flags().row_contiguous) {
    next.copy_shared_buffer(state);
    return next.data<float>();
  }
  return allocate<float>(next);
}

/** Inputs: x, weight, state, then maybe bias. */
class CausalConv : public CpuPrimitive {
 public:
  explicit CausalConv(bool silu) : silu_(silu) {}

  DEFINE_NAME(parallm_causal_conv)

  bool is_equivalent(const mx::Primitive& other) const override {
    return silu_ == static_cast<const CausalConv&>(other).silu_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    Inputs in(inputs, encoder);
    ConvJob job{};
    job.batch = inputs[0].shape(0);
    job.length = inputs[0].shape(1);
    job.channels = inputs[0].shape(2);
    job.kernel = inputs[1].shape(0);
    job.x = in.tokens(0);
    job.type = element_type(inputs[0]);
    job.weight = in.packed<float>(1);
    job.state = in.packed(2);
    job.bias = inputs.size() > 3 ? in.packed<float>(3) : nullptr;
    job.silu = silu_;
    job.out = allocate(outputs[0]);
    job.next_state = allocate(outputs[1]); // not the old one's: other threads still read that
    dispatch(encoder, [job] { run_conv(job); });
  }

 private:
  bool silu_;
};

/** Inputs: q, k, v, log_decay, state, then beta, skip, and read and write where they are. */
class LinearRecurrence : public CpuPrimitive {
 public:
  LinearRecurrence(bool beta, bool skip, bool delta, bool moves)
      : beta_(beta), skip_(skip), delta_(delta), moves_(moves) {}

  DEFINE_NAME(parallm_linear_recurrence)

  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const LinearRecurrence&>(other);
    return beta_ == o.beta_ && skip_ == o.skip_ && delta_ == o.delta_ && moves_ == o.moves_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    Inputs in(inputs, encoder);
    RecurrenceJob job{};
    job.batch = inputs[2].shape(0);
    job.length = inputs[2].shape(1);
    job.heads = inputs[2].shape(2);
    job.value_dim = inputs[2].shape(3);
    job.groups = inputs[0].shape(2);
    job.key_dim = inputs[0].shape(3);
    job.q = in.tokens(0);
    job.k = in.tokens(1);
    job.v = in.tokens(2);
    job.type = element_type(inputs[2]);
    job.log_decay = in.tokens(3);
    job.decay_by_key = inputs[3].ndim() == 4;
    job.state = in.packed<float>(4);
    job.beta = beta_ ? in.tokens(5) : Tokens{};
    job.skip = skip_ ? in.packed<float>(5 + beta_) : nullptr;
    job.delta = delta_;
    if (moves_) {
      job.read = in.tokens(5 + beta_ + skip_);
      job.write = in.tokens(6 + beta_ + skip_);
    }
    job.out = allocate(outputs[0]);
    job.next_state = next_state(inputs[4], outputs[1]);
    dispatch(encoder, [job] { run_recurrence(job); });
  }

 private:
  bool beta_;
  bool skip_;
  bool delta_;
  bool moves_;
};

/** Inputs: x, dt, a, b, c, skip, state. */
class SelectiveScan : public CpuPrimitive {
 public:
  DEFINE_NAME(parallm_selective_scan)
  DEFINE_DEFAULT_IS_EQUIVALENT()

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    Inputs in(inputs, encoder);
    SelectiveScanJob job{};
    job.batch = inputs[0].shape(0);
    job.length = inputs[0].shape(1);
    job.channels = inputs[0].shape(2);
    job.state_dim = inputs[2].shape(1);
    job.x = in.tokens(0);
    job.dt = in.tokens(1);
    job.a = in.packed<float>(2);
    job.b = in.tokens(3);
    job.c = in.tokens(4);
    job.skip = in.packed<float>(5);
    job.state = in.packed<float>(6);
    job.type = element_type(inputs[0]);
    job.out = allocate(outputs[0]);
    job.next_state = next_state(inputs[6], outputs[1]);
    dispatch(encoder, [job] { run_selective_scan(job); });
  }
};

/** Inputs: log_decay, x, state. */
class LinearScan : public CpuPrimitive {
 public:
  DEFINE_NAME(parallm_linear_scan)
  DEFINE_DEFAULT_IS_EQUIVALENT()

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    Inputs in(inputs, encoder);
    LinearScanJob job{};
    job.batch = inputs[1].shape(0);
    job.length = inputs[1].shape(1);
    job.channels = inputs[1].shape(2);
    job.log_decay = in.tokens(0);
    job.x = in.tokens(1);
    job.state = in.packed<float>(2);
    job.out = allocate<float>(outputs[0]);
    job.next_state = next_state(inputs[2], outputs[1]);
    dispatch(encoder, [job] { run_linear_scan(job); });
  }
};

void check(const char* op, bool holds, const char* what, const mx::array& got) {
  if (!holds) {
    fail_op(op, what, "; got ", got.shape(), " ", got.dtype());
  }
}

void check_is(const char* op, const mx::array& a, const mx::Shape& shape, mx::Dtype type, const char* name) {
  if (a.shape() != shape || a.dtype() != type) {
    fail_op(op, name, " must be ", type, " ", shape, "; got ", a.shape(), " ", a.dtype());
  }
}

WithState node(
    const mx::array& like,
    mx::Dtype type,
    const mx::array& state,
    const std::shared_ptr<mx::Primitive>& primitive,
    const std::vector<mx::array>& inputs) {
  auto out = mx::array::make_arrays({like.shape(), state.shape()}, {type, state.dtype()}, primitive, inputs);
  return {out[0], out[1]};
}

} // namespace

WithState causal_conv(
    const mx::array& x,
    const mx::array& weight,
    const std::optional<mx::array>& bias,
    bool silu,
    const mx::array& state) {
  const char* op = "causal_conv";
  check(op, x.ndim() == 3 && is_float(x.dtype()) && x.size() > 0, "x must be [B,L,C] of a float type", x);
  const int C = x.shape(2);
  check(
      op,
      weight.ndim() == 2 && weight.shape(0) >= 2 && weight.shape(0) <= 16 && weight.shape(1) == C &&
          weight.dtype() == mx::float32,
      "weight must be float32 [K,C], K from 2 to 16",
      weight);
  check_is(op, state, {x.shape(0), weight.shape(0) - 1, C}, x.dtype(), "state");
  std::vector<mx::array> inputs{x, weight, state};
  if (bias) {
    check_is(op, *bias, {C}, mx::float32, "bias");
    inputs.push_back(*bias);
  }
  return node(x, x.dtype(), state, std::make_shared<CausalConv>(silu), inputs);
}

WithState linear_recurrence(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const mx::array& log_decay,
    const std::optional<mx::array>& beta,
    const std::optional<mx::array>& skip,
    bool delta,
    const std::optional<mx::array>& read,
    const std::optional<mx::array>& write,
    const mx::array& state) {
  const char* op = "linear_recurrence";
  check(op, v.ndim() == 4 && is_float(v.dtype()) && v.size() > 0, "v must be [B,L,H,P] of a float type", v);
  const int B = v.shape(0), L = v.shape(1), H = v.shape(2);
  check(
      op,
      q.ndim() == 4 && q.shape(0) == B && q.shape(1) == L && q.shape(2) > 0 && H % q.shape(2) == 0 &&
          q.dtype() == v.dtype(),
      "q must be [B,L,G,N] of v's type, G a divisor of H",
      q);
  check_is(op, k, q.shape(), v.dtype(), "k");
  const int N = q.shape(3);
  check(
      op,
      (log_decay.shape() == mx::Shape{B, L, H} || log_decay.shape() == mx::Shape{B, L, H, N}) &&
          log_decay.dtype() == mx::float32,
      "log_decay must be float32 [B,L,H] or [B,L,H,N]",
      log_decay);
  check_is(op, state, {B, H, v.shape(3), N}, mx::float32, "state");
  std::vector<mx::array> inputs{q, k, v, log_decay, state};
  if (beta) {
    check_is(op, *beta, {B, L, H}, mx::float32, "beta");
    inputs.push_back(*beta);
  }
  if (skip) {
    check_is(op, *skip, {H}, mx::float32, "skip");
    inputs.push_back(*skip);
  }
  if (read.has_value() != write.has_value() || (read && delta)) {
    fail_op(op, "read and write go together, and not with the delta rule");
  }
  if (read) {
    check_is(op, *read, q.shape(), v.dtype(), "read");
    check_is(op, *write, q.shape(), v.dtype(), "write");
    inputs.insert(inputs.end(), {*read, *write});
  }
  auto primitive = std::make_shared<LinearRecurrence>(beta.has_value(), skip.has_value(), delta, read.has_value());
  return node(v, v.dtype(), state, primitive, inputs);
}

WithState selective_scan(
    const mx::array& x,
    const mx::array& dt,
    const mx::array& a,
    const mx::array& b,
    const mx::array& c,
    const mx::array& skip,
    const mx::array& state) {
  const char* op = "selective_scan";
  check(op, x.ndim() == 3 && is_float(x.dtype()) && x.size() > 0, "x must be [B,L,C] of a float type", x);
  const int B = x.shape(0), L = x.shape(1), C = x.shape(2);
  check(op, a.ndim() == 2 && a.shape(0) == C && a.dtype() == mx::float32, "a must be float32 [C,N]", a);
  const int N = a.shape(1);
  check_is(op, dt, x.shape(), mx::float32, "dt");
  check_is(op, b, {B, L, N}, x.dtype(), "b");
  check_is(op, c, {B, L, N}, x.dtype(), "c");
  check_is(op, skip, {C}, mx::float32, "skip");
  check_is(op, state, {B, C, N}, mx::float32, "state");
  return node(x, x.dtype(), state, std::make_shared<SelectiveScan>(), {x, dt, a, b, c, skip, state});
}

WithState linear_scan(const mx::array& log_decay, const mx::array& x, const mx::array& state) {
  const char* op = "linear_scan";
  check(op, x.ndim() == 3 && x.dtype() == mx::float32 && x.size() > 0, "x must be float32 [B,L,C]", x);
  check_is(op, log_decay, x.shape(), mx::float32, "log_decay");
  check_is(op, state, {x.shape(0), x.shape(2)}, mx::float32, "state");
  return node(x, mx::float32, state, std::make_shared<LinearScan>(), {log_decay, x, state});
}

} // namespace parallm::cpu
