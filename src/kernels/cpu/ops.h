// MLX primitives for CPUs, where MLX's own ops are scalar loops or chains of small ops: Google Highway, one code for
// every instruction set, chosen at run time; threads from threads.h. Each gives an mx::array node on the CPU stream.
//
// Rows are independent, bit for bit: an output row depends on its own input row alone and is summed in one fixed order,
// however many rows the call has and wherever the row stands. This is what makes a request's tokens independent of its
// neighbours, of the prefill's chunks, of prefix hits and of preemption.
//
// x may be float32, float16 or bfloat16; sums are float32; outputs have x's dtype unless said otherwise.
#pragma once

#include <mlx/mlx.h>

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace parallm::cpu {
namespace mx = mlx::core;

/** A matrix w [N,K] as a matmul takes it: dense (float32, float16 or bfloat16), or in one of MLX's quantizations, as
 *  quantized_matmul says. */
struct Operand {
  mx::array w;
  std::optional<mx::array> scales = {};
  std::optional<mx::array> biases = {}; // affine codes'
  std::optional<mx::array> global_scale = {}; // float32, a factor of small floats' scales
  std::optional<mx::array> bias = {}; // [N]
  int group_size = 0;
  int bits = 0;
  std::string mode = "affine";
};

/** x [M,K], whose K may be several axes -> x wᵀ (+ bias) [M,N]. */
mx::array matmul(const mx::array& x, const Operand& operand);

/** One x by several matrices, in one pass; each product in its shape of `outs`, [M,N] or N cut into axes. */
std::vector<mx::array> matmuls(const mx::array& x, const std::vector<Operand>& operands, std::vector<mx::Shape> outs);

/** x + y. Where y is a matmul that has not run, its sums go onto x at once (fusion.h). */
mx::array add(const mx::array& x, const mx::array& y);

/** x [M,K], w [N,K] (float32, float16 or bfloat16) -> x wᵀ (+ bias [N]) [M,N]. */
mx::array matmul(const mx::array& x, const mx::array& w, const std::optional<mx::array>& bias = {});

/** As matmul, with w in one of MLX's quantizations (mlx/ops.h, `quantize`): w uint32 [N, K*bits/32], scales
 *  [N, K/group_size]. `mode` affine: scales and biases float32, float16 or bfloat16, bits 2, 3, 4, 5, 6, 8, group_size
 *  16, 32, 64, 128; x is rounded to 16-bit codes of a scale a group. mxfp4 (4 bits, groups of 32), nvfp4 (4, 16), mxfp8
 * (8, 32): scales uint8, no biases. */
mx::array quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    int group_size,
    int bits,
    const std::optional<mx::array>& bias = {},
    const std::string& mode = "affine");

/** As matmul, by one of E matrices a row: row m of x by w[which[m]], w [E,N,K], which int32 [M] rising, bias [E,N]. A
 *  row whose `which` is no matrix's becomes NaN: a task can't throw. */
mx::array grouped_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& which,
    const std::optional<mx::array>& bias = {});

/** The same with w as quantized_matmul's, each with a leading axis E; global_scale float32 [E], factors of small
 * floats' scales. */
mx::array grouped_quantized_matmul(
    const mx::array& x,
    const mx::array& w,
    const mx::array& scales,
    const std::optional<mx::array>& biases,
    int group_size,
    int bits,
    const mx::array& which,
    const std::optional<mx::array>& bias = {},
    const std::string& mode = "affine",
    const std::optional<mx::array>& global_scale = {});

/** The places of the k greatest of each row of scores float32 [T,E] -> int32 [T,k], in falling order, of equal ones the
 * first first. */
mx::array greatest(const mx::array& scores, int k);

/** The entries of groups, int32 [T,k] from 0 to count - 1, ordered by group, those of one group as they stood. */
struct GroupOrder {
  mx::array rows; // int32 [T*k] the row of groups of each entry, in that order
  mx::array groups; // int32 [T*k] its group: rising
  mx::array places; // int32 [T*k] where entry t*k + c went
};
GroupOrder order_by_group(const mx::array& groups, int count);

/** Row t is the sum over c of weights[t,c] * y[places[t*k + c]]: y [M,N], weights float32 [T,k], places int32 [T*k]
 *  from 0 to M - 1 -> [T,N] in y's dtype, rounded once. */
mx::array weighted_sum(const mx::array& y, const mx::array& places, const mx::array& weights);

/** Rows of a matrix of affine codes (mlx/ops.h, `quantize`) as floats, rounded once: ids int32 [T], w uint32
 * [N,K*bits/32], scales and biases [N,K/group_size] of one float type -> [T,K] of dtype. A row for an id that w doesn't
 * have is NaN. */
mx::array dequantize_rows(
    const mx::array& ids,
    const mx::array& w,
    const mx::array& scales,
    const mx::array& biases,
    int group_size,
    int bits,
    mx::Dtype dtype);

/** x [M,D] / rms(x) * weight [D]. */
mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps);

/** silu(gate) * up, both [M,N]. */
mx::array swiglu(const mx::array& gate, const mx::array& up);

struct PagedAttentionShape {
  int block_size;
  float scale;
  int window; // 0: none
  int chunk; // 0: none
  float softcap; // 0: none
  int rope_dims; // 0: no rotation
  bool rope_traditional;
  int kv_bits = 0; // 0: the pools hold floats; 8 or 4: codes
  int sparse_block = 0; // 0: all positions are seen; else a multiple of 32, see BlockSparse in kv/cache.h
  int sparse_local = 0;
  int sparse_stride = 0;
};

/** Bytes of one head's key or value of `dim` numbers, a multiple of 32, in codes of 8 or 4 bits: x is about least +
 * scale
 *  * code, in groups of 64, or 32 where 64 does not divide dim (affine, as MLX's `quantize`). */
size_t kv_row_bytes(int dim, int bits);
/** Those groups' size. */
int kv_group_size(int dim);

/** What it takes to add keys to attention that is done. */
struct OpenAttention {
  mx::array masses; // float32 [T,H]: the log of the sum of exp(score), sinks included
  mx::array rotated; // float32 [T,H,D]: the queries
};

/** RoPE, cache write and attention of one layer for a flat step (kv/cache.h has the words).
 *  q [T,H,D], k [T,G,D], v [T,G,Dv] un-rotated; cos, sin [T, rope_dims/2] float32 (any array where rope_dims is 0);
 *  k_pool [blocks, G, block_size, D] and v_pool [.., Dv] in the KV dtype: WRITTEN IN PLACE, so all calls that share a
 *  pool must be on one stream and evaluated in order; spans int32 [R,3]: first, count, offset; table int32
 *  [R, width]: block ids; sinks [H] float32. With kv_bits the pools are uint8 [blocks, G, block_size, kv_row_bytes(D,
 * bits)]. -> [T,H,Dv] in q's dtype. Query t of a span sees positions [max(0, p-window+1, p - p % chunk), p] of its own
 * sequence, p = offset + t; where `chosen`, bool [T,A,S], is given, only those of them that chosen[t, h*A/H] names;
 * where it names none the output is 0, its mass -infinity. `open`, where not null, takes what it is to go on with. */
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
    OpenAttention* open = nullptr,
    const std::optional<mx::array>& chosen = {});

struct RecallShape {
  int top_k; // memories of each query; 0 or more
  float scale; // of q.k
  float softcap; // 0: none
  bool by_dot; // the most similar by q.k; else by cosine
  std::optional<float> threshold; // of the cosine: what isn't above is left out
  int block = 1; // memories: each chosen one that the threshold keeps brings its whole block; 1: none but itself
  std::shared_ptr<const std::vector<int32_t>> starts = nullptr; // for blocks: each text's first memory, rising from 0
};

/** Memories' keys or values: floats [G,N,D], or codes of 8 bits as MLX's `quantize` makes them, in groups of
 * kv_group_size(D): about 9/16 of the bytes of 16 bits. */
class RecallRows {
 public:
  /* implicit */ RecallRows(mx::array floats) : data(std::move(floats)) {}
  /** codes uint32 [G,N,D/4], scales and biases float32 [G,N,D/group]. */
  RecallRows(mx::array codes, mx::array scales, mx::array biases);
  /** `floats`, D a multiple of 32, in codes. */
  static RecallRows coded(const mx::array& floats);

  int shape(int axis) const; // of [G,N,D]
  bool is_coded() const {
    return scales.has_value();
  }
  std::vector<mx::array> arrays() const;
  /** What `change` makes of each of the arrays; not of their last axis. */
  RecallRows changed(const std::function<mx::array(const mx::array&)>& change) const;
  mx::array floats() const; // codes as float32

  mx::array data;
  std::optional<mx::array> scales, biases;
};

/** Keys in codes, for the first look of `recall`: recall.h has the layout. */
struct RecallCodes {
  mx::array codes, scales, centres;
};
/** keys [G,N,D] of a float type, inverse_norms float32 [G,N]. */
RecallCodes recall_codes(const mx::array& keys, const mx::array& inverse_norms);

/** Adds memories to attention that is done: each query takes the `top_k` most similar keys (of equal ones the first)
 *  into its softmax. q float32 [T,H,D], rotated; keys [G,N,D] and values [G,N,Dv] of one float type, or both in codes,
 *  which are read as they are; inverse_norms float32 [G,N] of the keys; local [T,H,Dv] and masses float32 [T,H], as
 *  paged_attention gives them. Query head h reads kv head h / (H/G). -> [T,H,Dv] in local's dtype. `record`, where not
 *  null: float32 [T,3,N], becomes itself and what each token gives to each memory: softmax weights summed over heads,
 *  the greatest cosine, how often chosen. WRITTEN IN PLACE: what it was must not be read by others. `codes`, where not
 *  null, are the keys': faster where there are many, and the same numbers. With shape.block, blocks are counted from
 *  their text's first memory and end with it, and a memory that several chosen ones bring takes part once. */
mx::array recall(
    const mx::array& q,
    const RecallRows& keys,
    const mx::array& inverse_norms,
    const RecallRows& values,
    const mx::array& local,
    const mx::array& masses,
    const RecallShape& shape,
    mx::array* record = nullptr,
    const RecallCodes* codes = nullptr);

/** One token for each row of logits [R,V] float32, in one pass over each row: temperature, min_p, top_k, top_p, then
 *  the token where the running sum of what is left, in vocabulary order, first exceeds draw * total. Arrays [R]:
 *  temperature (0: the first of the greatest logits), top_p, min_p, draw float32; top_k int32 (0: off). -> int32 [R].
 *  Ties at a filter's border stay in. */
mx::array sample(
    const mx::array& logits,
    const mx::array& temperature,
    const mx::array& top_k,
    const mx::array& top_p,
    const mx::array& min_p,
    const mx::array& draw);

/** Threads that kernels use, the caller included. At start: the machine's cores, or PARALLM_THREADS. */
int threads();
void set_threads(int count);

} // namespace parallm::cpu
