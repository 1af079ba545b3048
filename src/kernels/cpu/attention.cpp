#include "kernels/cpu/attention.h"
#include "kernels/cpu/node.h"
#include "kernels/cpu/ops.h"

namespace parallm::cpu {
namespace {

/** Inputs: q, k, v, cos, sin, k_pool, v_pool, spans, table, then maybe sinks and what is chosen.
 * Two nodes are never equivalent: each writes to the pools. */
class PagedAttention : public CpuPrimitive {
 public:
  explicit PagedAttention(const PagedAttentionShape& shape) : shape_(shape) {}

  DEFINE_NAME(parallm_paged_attention)

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    for (const size_t pool : {5, 6}) {
      if (!inputs[pool].flags().row_contiguous) {
        fail_op("paged_attention", "a pool must be row contiguous");
      }
    }
    auto in = row_contiguous(inputs, encoder);
    AttentionJob job{};
    job.tokens = in[0].shape(0);
    job.heads = in[0].shape(1);
    job.kv_heads = in[1].shape(1);
    job.dim = in[0].shape(2);
    job.v_dim = in[2].shape(2);
    job.q = in[0].data<void>();
    job.k = in[1].data<void>();
    job.v = in[2].data<void>();
    job.type = element_type(in[0]);
    job.cos = in[3].data<float>();
    job.sin = in[4].data<float>();
    job.k_pool = in[5].data<void>();
    job.v_pool = in[6].data<void>();
    job.kv_bits = shape_.kv_bits;
    job.pool_type = shape_.kv_bits ? Type::f32 : element_type(in[5]);
    job.blocks = in[5].shape(0);
    job.block_size = shape_.block_size;
    job.spans = in[7].data<int32_t>();
    job.span_count = in[7].shape(0);
    job.table = in[8].data<int32_t>();
    job.table_width = in[8].shape(1);
    for (size_t i = 9; i < in.size(); i++) {
      if (in[i].dtype() == mx::float32) {
        job.sinks = in[i].data<float>();
      } else {
        job.chosen = in[i].data<bool>();
        job.choosers = in[i].shape(1);
        job.chosen_width = in[i].shape(2);
      }
    }
    job.scale = shape_.scale;
    job.window = shape_.window;
    job.chunk = shape_.chunk;
    job.softcap = shape_.softcap;
    job.rope_dims = shape_.rope_dims;
    job.rope_traditional = shape_.rope_traditional;
    job.sparse_block = shape_.sparse_block;
    job.sparse_local = shape_.sparse_local;
    job.sparse_stride = shape_.sparse_stride;
    job.out = allocate(outputs[0]);
    job.masses = outputs.size() > 1 ? allocate<float>(outputs[1]) : nullptr;
    job.rotated = outputs.size() > 1 ? allocate<float>(outputs[2]) : nullptr;
    dispatch(encoder, [job] { run_attention(job); });
  }

 private:
  PagedAttentionShape shape_;
};

void check(bool holds, const char* what, const mx::array& got) {
  if (!holds) {
    fail_op("paged_attention", what, "; got ", got.shape(), " ", got.dtype());
  }
}

} // namespace

int kv_group_size(int dim) {
  return static_cast<int>(kv_group(dim));
}

size_t kv_row_bytes(int dim, int bits) {
  return kv_code_row(dim, bits);
}

mx::array paged_attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const mx::array& cos,
    const mx::array& sin,
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& spans,
    const mx::array& table,
    const std::optional<mx::array>& sinks,
    const PagedAttentionShape& shape,
    OpenAttention* open,
    const std::optional<mx::array>& chosen) {
  check(q.ndim() == 3 && is_float(q.dtype()), "q must be [T,H,D] of a float type", q);
  const int T = q.shape(0), H = q.shape(1), D = q.shape(2);
  check(
      k.ndim() == 3 && k.shape(0) == T && k.shape(2) == D && k.shape(1) > 0 && H % k.shape(1) == 0 &&
          k.dtype() == q.dtype(),
      "k must be [T,G,D] of q's type, G a divisor of H",
      k);
  const int G = k.shape(1);
  check(
      v.ndim() == 3 && v.shape(0) == T && v.shape(1) == G && v.dtype() == q.dtype(),
      "v must be [T,G,Dv] of q's type",
      v);
  const int block = shape.block_size;
  const int bits = shape.kv_bits;
  if (bits != 0 && ((bits != 4 && bits != 8) || D % 32 != 0 || v.shape(2) % 32 != 0)) {
    fail_op("paged_attention", "kv_bits must be 0, 4 or 8, of heads of a multiple of 32; got ", bits, " and ", D);
  }
  const auto width = [&](int dim) { return bits ? static_cast<int>(kv_row_bytes(dim, bits)) : dim; };
  check(
      k_pool.ndim() == 4 && block > 0 && k_pool.shape(1) == G && k_pool.shape(2) == block &&
          k_pool.shape(3) == width(D) && (bits ? k_pool.dtype() == mx::uint8 : is_float(k_pool.dtype())),
      "k_pool must be [blocks,G,block_size,D] of a float type, or of codes",
      k_pool);
  check(
      v_pool.ndim() == 4 && v_pool.shape(0) == k_pool.shape(0) && v_pool.shape(1) == G && v_pool.shape(2) == block &&
          v_pool.shape(3) == width(v.shape(2)) && v_pool.dtype() == k_pool.dtype(),
      "v_pool must be [blocks,G,block_size,Dv] of k_pool's kind",
      v_pool);
  check(spans.ndim() == 2 && spans.shape(1) == 3 && spans.dtype() == mx::int32, "spans must be int32 [R,3]", spans);
  check(
      table.ndim() == 2 && table.shape(0) == spans.shape(0) && table.dtype() == mx::int32,
      "table must be int32 [R,width]",
      table);
  if (shape.rope_dims < 0 || shape.rope_dims > D || shape.rope_dims % 2 != 0 || shape.window < 0 || shape.chunk < 0 ||
      shape.softcap < 0) {
    fail_op(
        "paged_attention",
        "rope_dims must be even, from 0 to D; window, chunk and softcap not negative; got ",
        shape.rope_dims,
        ", ",
        shape.window,
        ", ",
        shape.chunk,
        " and ",
        shape.softcap);
  }
  if (shape.sparse_block % 32 != 0 || (shape.sparse_block > 0 && (shape.sparse_local < 1 || shape.sparse_stride < 1))) {
    fail_op(
        "paged_attention",
        "sparse_block must be a multiple of 32, with a local part and a stride; got ",
        shape.sparse_block,
        ", ",
        shape.sparse_local,
        " and ",
        shape.sparse_stride);
  }
  if (shape.rope_dims > 0) {
    const mx::Shape angles{T, shape.rope_dims / 2};
    check(cos.shape() == angles && cos.dtype() == mx::float32, "cos must be float32 [T,rope_dims/2]", cos);
    check(sin.shape() == angles && sin.dtype() == mx::float32, "sin must be float32 [T,rope_dims/2]", sin);
  }
  std::vector<mx::array> inputs{q, k, v, cos, sin, k_pool, v_pool, spans, table};
  if (sinks) {
    check(sinks->shape() == mx::Shape{H} && sinks->dtype() == mx::float32, "sinks must be float32 [H]", *sinks);
    inputs.push_back(*sinks);
  }
  if (chosen) {
    check(
        chosen->ndim() == 3 && chosen->shape(0) == T && chosen->shape(1) > 0 && H % chosen->shape(1) == 0 &&
            chosen->dtype() == mx::bool_,
        "chosen must be bool [T,A,S], A a divisor of H",
        *chosen);
    inputs.push_back(*chosen);
  }
  auto primitive = std::make_shared<PagedAttention>(shape);
  if (open == nullptr) {
    return mx::array({T, H, v.shape(2)}, q.dtype(), std::move(primitive), std::move(inputs));
  }
  auto outputs = mx::array::make_arrays(
      {{T, H, v.shape(2)}, {T, H}, {T, H, D}}, {q.dtype(), mx::float32, mx::float32}, primitive, inputs);
  open->masses = outputs[1];
  open->rotated = outputs[2];
  return outputs[0];
}

} // namespace parallm::cpu
