#include "kernels/cpu/recall.h"

#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"

#include <algorithm>

namespace parallm::cpu {
namespace {

/** Inputs: keys, inverse_norms; outputs as RecallCodes. */
class Code : public CpuPrimitive {
 public:
  DEFINE_NAME(parallm_recall_codes)

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto keys = row_contiguous(inputs[0], encoder), norms = row_contiguous(inputs[1], encoder);
    CodesJob job{};
    job.kv_heads = keys.shape(0);
    job.memories = keys.shape(1);
    job.dim = keys.shape(2);
    job.keys = keys.data<void>();
    job.inverse_norms = norms.data<float>();
    job.type = element_type(keys);
    job.codes = allocate<uint8_t>(outputs[0]);
    job.scales = allocate<float>(outputs[1]);
    job.centres = allocate<float>(outputs[2]);
    dispatch(encoder, [job] { run_code(job); });
  }
};

/** Inputs: q, keys, inverse_norms, values, local, masses, then maybe the keys' and the values' scales and biases, then
 * maybe the record, then maybe the codes' three. */
class Recall : public CpuPrimitive {
 public:
  Recall(const RecallShape& shape, bool coded, bool record) : shape_(shape), coded_(coded), record_(record) {}

  DEFINE_NAME(parallm_recall)

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    const auto in = row_contiguous(inputs, encoder);
    RecallJob job{};
    job.tokens = in[0].shape(0);
    job.heads = in[0].shape(1);
    job.dim = in[0].shape(2);
    job.kv_heads = in[1].shape(0);
    job.memories = in[1].shape(1);
    job.v_dim = in[4].shape(2);
    job.q = in[0].data<float>();
    job.keys.data = in[1].data<void>();
    job.inverse_norms = in[2].data<float>();
    job.values.data = in[3].data<void>();
    size_t next = 6;
    if (coded_) {
      for (RowsOf* rows : {&job.keys, &job.values}) {
        rows->scales = in[next++].data<float>();
        rows->biases = in[next++].data<float>();
      }
    } else {
      job.memory_type = element_type(in[1]);
    }
    job.local = in[4].data<void>();
    job.masses = in[5].data<float>();
    job.type = element_type(in[4]);
    job.top_k = std::min<size_t>(shape_.top_k, job.memories);
    job.scale = shape_.scale;
    job.softcap = shape_.softcap;
    job.by_dot = shape_.by_dot;
    job.threshold = shape_.threshold;
    job.block = shape_.block;
    if (shape_.block > 1) {
      job.starts = shape_.starts->data();
      job.texts = shape_.starts->size();
    }
    job.out = allocate(outputs[0]);
    if (record_) {
      outputs[1].copy_shared_buffer(in[next++]);
      job.record = outputs[1].data<float>();
    }
    if (in.size() > next) {
      job.codes = in[next].data<uint8_t>();
      job.scales = in[next + 1].data<float>();
      job.centres = in[next + 2].data<float>();
    }
    dispatch(encoder, [job, starts = shape_.starts] { run_recall(job); });
  }

 private:
  RecallShape shape_;
  bool coded_, record_;
};

void check(bool holds, const char* what, const mx::array& got) {
  if (!holds) {
    fail_op("recall", what, "; got ", got.shape(), " ", got.dtype());
  }
}

std::vector<mx::Shape> codes_shapes(int kv_heads, int memories, int dim) {
  const int tiles = static_cast<int>(code_tiles(memories)), words = 3 * static_cast<int>(code_parts(dim));
  const int group = static_cast<int>(code_group), scales = static_cast<int>(code_scales);
  return {{kv_heads, tiles, scales, words, group, 4}, {kv_heads, tiles, scales}, {kv_heads, dim + 2}};
}

} // namespace

RecallRows::RecallRows(mx::array codes, mx::array own_scales, mx::array own_biases)
    : data(std::move(codes)), scales(std::move(own_scales)), biases(std::move(own_biases)) {
  const bool codes_fit = data.ndim() == 3 && data.dtype() == mx::uint32 && data.shape(2) % 8 == 0;
  check(codes_fit, "codes of memories must be uint32 [G,N,D/4], D a multiple of 32", data);
  const mx::Shape groups{data.shape(0), data.shape(1), shape(2) / kv_group_size(shape(2))};
  for (const mx::array* x : {&*scales, &*biases}) {
    check(x->shape() == groups && x->dtype() == mx::float32, "scales of codes must be float32 [G,N,D/group]", *x);
  }
}

RecallRows RecallRows::coded(const mx::array& floats) {
  auto made = mx::quantize(mx::astype(floats, mx::float32), kv_group_size(floats.shape(2)), 8);
  return {made[0], made[1], made[2]};
}

int RecallRows::shape(int axis) const {
  return is_coded() && axis == 2 ? 4 * data.shape(2) : data.shape(axis);
}

std::vector<mx::array> RecallRows::arrays() const {
  return is_coded() ? std::vector{data, *scales, *biases} : std::vector{data};
}

RecallRows RecallRows::changed(const std::function<mx::array(const mx::array&)>& change) const {
  return is_coded() ? RecallRows(change(data), change(*scales), change(*biases)) : RecallRows(change(data));
}

mx::array RecallRows::floats() const {
  return is_coded() ? mx::dequantize(data, *scales, *biases, kv_group_size(shape(2)), 8) : data;
}

RecallCodes recall_codes(const mx::array& keys, const mx::array& inverse_norms) {
  check(keys.ndim() == 3 && is_float(keys.dtype()) && keys.shape(1) > 0, "keys must be [G,N,D] of a float type", keys);
  check(
      inverse_norms.shape() == mx::Shape{keys.shape(0), keys.shape(1)} && inverse_norms.dtype() == mx::float32,
      "inverse_norms must be float32 [G,N]",
      inverse_norms);
  auto made = mx::array::make_arrays(
      codes_shapes(keys.shape(0), keys.shape(1), keys.shape(2)),
      {mx::uint8, mx::float32, mx::float32},
      std::make_shared<Code>(),
      {keys, inverse_norms});
  return {made[0], made[1], made[2]};
}

mx::array recall(
    const mx::array& q,
    const RecallRows& keys,
    const mx::array& inverse_norms,
    const RecallRows& values,
    const mx::array& local,
    const mx::array& masses,
    const RecallShape& shape,
    mx::array* record,
    const RecallCodes* codes) {
  check(q.ndim() == 3 && q.dtype() == mx::float32, "q must be float32 [T,H,D]", q);
  const int T = q.shape(0), H = q.shape(1), D = q.shape(2);
  const bool coded = keys.is_coded();
  check(
      keys.data.ndim() == 3 && keys.shape(0) > 0 && H % keys.shape(0) == 0 && keys.shape(1) > 0 && keys.shape(2) == D &&
          (coded || is_float(keys.data.dtype())),
      "keys must be [G,N,D] of a float type or codes, G a divisor of H",
      keys.data);
  const int G = keys.shape(0), N = keys.shape(1);
  check(
      inverse_norms.shape() == mx::Shape{G, N} && inverse_norms.dtype() == mx::float32,
      "inverse_norms must be float32 [G,N]",
      inverse_norms);
  check(
      values.data.ndim() == 3 && values.shape(0) == G && values.shape(1) == N &&
          values.data.dtype() == keys.data.dtype() && values.is_coded() == coded,
      "values must be [G,N,Dv] of the keys' type",
      values.data);
  const mx::Shape out{T, H, values.shape(2)};
  check(local.shape() == out && is_float(local.dtype()), "local must be [T,H,Dv] of a float type", local);
  check(masses.shape() == mx::Shape{T, H} && masses.dtype() == mx::float32, "masses must be float32 [T,H]", masses);
  if (shape.top_k < 0) {
    fail_op("recall", "top_k must not be negative; got ", shape.top_k);
  }
  if (shape.block < 1 || (shape.block > 1 && (!shape.starts || shape.starts->empty() || shape.starts->front() != 0))) {
    fail_op("recall", "blocks must be of 1 or more, of texts from 0 on; got ", shape.block);
  }
  std::vector<mx::array> inputs{q, keys.data, inverse_norms, values.data, local, masses};
  if (coded) {
    inputs.insert(inputs.end(), {*keys.scales, *keys.biases, *values.scales, *values.biases});
  }
  auto primitive = std::make_shared<Recall>(shape, coded, record != nullptr);
  const mx::Shape sums{T, 3, N};
  if (record) {
    check(record->shape() == sums && record->dtype() == mx::float32, "record must be float32 [T,3,N]", *record);
    inputs.push_back(*record);
  }
  if (codes) {
    const auto shapes = codes_shapes(G, N, D);
    check(codes->codes.shape() == shapes[0] && codes->codes.dtype() == mx::uint8, "codes must be the keys'", keys.data);
    check(
        codes->scales.shape() == shapes[1] && codes->centres.shape() == shapes[2],
        "codes must be the keys'",
        keys.data);
    inputs.insert(inputs.end(), {codes->codes, codes->scales, codes->centres});
  }
  if (!record) {
    return mx::array(out, local.dtype(), std::move(primitive), std::move(inputs));
  }
  auto outputs = mx::array::make_arrays({out, sums}, {local.dtype(), mx::float32}, primitive, inputs);
  *record = outputs[1];
  return outputs[0];
}

} // namespace parallm::cpu
