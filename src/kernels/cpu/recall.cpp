#include "kernels/cpu/recall.h"

#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"

#include <algorithm>

namespace parallm::cpu {
namespace {

/** Inputs: q, keys, inverse_norms, values, local, masses. */
class Recall : public CpuPrimitive {
 public:
  explicit Recall(const RecallShape& shape) : shape_(shape) {}

  DEFINE_NAME(parallm_recall)

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    std::vector<mx::array> in;
    for (const auto& input : inputs) {
      in.push_back(row_contiguous(input, encoder));
    }
    RecallJob job{};
    job.tokens = in[0].shape(0);
    job.heads = in[0].shape(1);
    job.dim = in[0].shape(2);
    job.kv_heads = in[1].shape(0);
    job.memories = in[1].shape(1);
    job.v_dim = in[3].shape(2);
    job.q = in[0].data<float>();
    job.keys = in[1].data<void>();
    job.inverse_norms = in[2].data<float>();
    job.values = in[3].data<void>();
    job.memory_type = element_type(in[1]);
    job.local = in[4].data<void>();
    job.masses = in[5].data<float>();
    job.type = element_type(in[4]);
    job.top_k = std::min<size_t>(shape_.top_k, job.memories);
    job.scale = shape_.scale;
    job.softcap = shape_.softcap;
    job.by_dot = shape_.by_dot;
    job.threshold = shape_.threshold;
    job.out = allocate(outputs[0]);
    dispatch(encoder, [job] { run_recall(job); });
  }

 private:
  RecallShape shape_;
};

void check(bool holds, const char* what, const mx::array& got) {
  if (!holds) {
    fail_op("recall", what, "; got ", got.shape(), " ", got.dtype());
  }
}

} // namespace

mx::array recall(
    const mx::array& q,
    const mx::array& keys,
    const mx::array& inverse_norms,
    const mx::array& values,
    const mx::array& local,
    const mx::array& masses,
    const RecallShape& shape) {
  check(q.ndim() == 3 && q.dtype() == mx::float32, "q must be float32 [T,H,D]", q);
  const int T = q.shape(0), H = q.shape(1), D = q.shape(2);
  check(
      keys.ndim() == 3 && keys.shape(0) > 0 && H % keys.shape(0) == 0 && keys.shape(1) > 0 && keys.shape(2) == D &&
          is_float(keys.dtype()),
      "keys must be [G,N,D] of a float type, G a divisor of H",
      keys);
  const int G = keys.shape(0), N = keys.shape(1);
  check(
      inverse_norms.shape() == mx::Shape{G, N} && inverse_norms.dtype() == mx::float32,
      "inverse_norms must be float32 [G,N]",
      inverse_norms);
  check(
      values.ndim() == 3 && values.shape(0) == G && values.shape(1) == N && values.dtype() == keys.dtype(),
      "values must be [G,N,Dv] of the keys' type",
      values);
  const mx::Shape out{T, H, values.shape(2)};
  check(local.shape() == out && is_float(local.dtype()), "local must be [T,H,Dv] of a float type", local);
  check(masses.shape() == mx::Shape{T, H} && masses.dtype() == mx::float32, "masses must be float32 [T,H]", masses);
  if (shape.top_k < 0) {
    fail_op("recall", "top_k must not be negative; got ", shape.top_k);
  }
  std::vector<mx::array> inputs{q, keys, inverse_norms, values, local, masses};
  return mx::array(out, local.dtype(), std::make_shared<Recall>(shape), std::move(inputs));
}

} // namespace parallm::cpu
