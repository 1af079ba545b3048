// Kernels for NVIDIA GPUs of compute capability 8.0 and up, where MLX's own ops read more than they need. Their text is
// compiled at run time, on the first call of each kind (compile.h); no CUDA toolkit is needed to build.
//
// A row's result depends on its own inputs alone, whatever the other rows hold, and is summed in one fixed order: where
// the work of a row is split, it is split at places that its own length gives. A matmul has two orders, one for up to
// 16 rows and one for more, and by dense weights a third for one row.
//
// All arrays are on the default stream. Sums are float32; outputs have x's (or q's) dtype.
#pragma once

#include "kernels/cpu/ops.h"

#include <mlx/mlx.h>

#include <optional>
#include <vector>

namespace parallm::cuda {
namespace mx = mlx::core;

/** There is a GPU that these kernels run on, and the environment doesn't say PARALLM_CUDA_KERNELS=0. */
bool available();

/** Numbers of the host, copied. */
mx::array upload(const void* values, mx::Shape shape, mx::Dtype type);

/** A weight matrix [N,K]: of x's dtype, or affine codes uint32 [N, K*bits/32] with scales and biases
 * [N, K/group_size] of x's dtype. */
struct Factor {
  mx::array w;
  std::optional<mx::array> scales, biases;
  int group_size = 0, bits = 16;
};

/** dequantize has a kernel for this, and matmul for few rows: affine, 4 or 8 bits, groups of 32, 64 or 128, 16-bit x,
 * on a GPU with the shared memory of an A100, an Orin or of compute capability 9 or 10. */
bool multiplies(mx::Dtype x, int group_size, int bits);

/** matmul has a kernel for this: the same with x [M,K], M from 1 to most_rows; or dense with K a multiple of 64 (of 8
 * for one row); each where its tiles fit into the GPU's shared memory. */
bool multiplies(const mx::array& x, const Factor& factor);
constexpr int most_rows = 64;

/** x [M,K] by each of up to most_matrices alike matrices, transposed, in one launch -> [M,N] each. Reads each weight
 * once. Codes enter the sums exactly, scales and biases in float32; but on Hopper, for more than 16 rows, as weights
 * rounded to x's dtype. */
std::vector<mx::array> matmuls(const mx::array& x, const std::vector<Factor>& factors);
constexpr int most_matrices = 3;

/** By one. A gate or a residual that follows becomes part of its launch. */
mx::array matmul(const mx::array& x, const Factor& factor);

/** silu(gate) * up as one launch, where both are matmuls of one x by alike matrices that nobody has evaluated. */
std::optional<mx::array> gated_matmul(const mx::array& gate, const mx::array& up);

/** x + y, in y's launch where it is a matmul that nobody has evaluated. */
mx::array add(const mx::array& x, const mx::array& y);

/** rms_norm has a kernel for this: up to most_rows rows of 16-bit floats, whole eights of them. */
bool norms(const mx::array& x, const mx::array& weight);

/** x [M,D] over the root of its rows' mean square + eps, times weight [D]. */
mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps);

/** The weights [N,K] that w, scales and biases, as a Factor's, stand for, each rounded once: for more rows. */
mx::array dequantize(const mx::array& w, const mx::array& scales, const mx::array& biases, int group_size, int bits);

/** silu(gate) * up, both [M,N] of one dtype, computed in float32. */
mx::array swiglu(const mx::array& gate, const mx::array& up);

/** The attention kernels take this: 16-bit floats, heads of whole 32s, up to 256. */
bool attends(mx::Dtype dtype, int head_dim, int v_head_dim);

/** RoPE and cache write of one layer: q [T,H,D], k [T,G,D], v [T,G,Dv] of one dtype; cos, sin [T, rope_dims/2] float32
 *  (any array where rope_dims is 0); slots int32 [T]. Row t of k, rotated, and of v is written IN PLACE at row slots[t]
 *  of k_pool [S,G,D] and v_pool [S,G,Dv], of the same dtype. -> q rotated: what reads the pools in the same step must
 *  take it as an input, so that it runs later. */
mx::array rotate_and_write(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    const mx::array& cos,
    const mx::array& sin,
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& slots,
    int rope_dims,
    bool rope_traditional);

/** Rows slots (int32 [n]) of pool [S,G,D] -> [n,G,D], read after `after` was made. */
mx::array read_pool(const mx::array& pool, const mx::array& slots, const mx::array& after);

/** How a layer attends (kv/cache.h, Attention). */
struct AttentionShape {
  int block_size;
  float scale;
  int window; // 0: none
  int chunk; // 0: none
  float softcap; // 0: none
};

/** The step's own keys and values, as rotate_and_write's. */
struct Fresh {
  mx::array k, v, cos, sin, slots;
  int rope_dims;
  bool rope_traditional;
};

/** What it takes to add keys to attention that is done. */
struct OpenAttention {
  mx::array masses; // float32 [B,H]: the log of the sum of exp(score), sinks included
  mx::array rotated; // float32 [B,H,D]: the queries, where paged_decode rotates them
};

/** One query token a sequence against its keys in the pools: q [T,H,D] rotated; sequence b's query is token tokens[b],
 *  at position positions[b]; its position p lies in block table[b, p / block_size], place p % block_size. tokens,
 *  positions int32 [B], table int32 [B,width], sinks float32 [H]. `spread`: at least the most positions that a row
 *  sees. With `fresh`, of which tokens has every token, q is not rotated, and rotate_and_write's work is done in the
 *  same launch; `open`, where not null, then takes what it is to go on with. -> [B,H,Dv]. */
mx::array paged_decode(
    const mx::array& q,
    const mx::array& k_pool,
    const mx::array& v_pool,
    const mx::array& tokens,
    const mx::array& positions,
    const mx::array& table,
    const std::optional<mx::array>& sinks,
    int spread,
    const AttentionShape& shape,
    const std::optional<Fresh>& fresh = {},
    OpenAttention* open = nullptr);

using cpu::RecallShape;

/** recall has kernels for this: memories of 16-bit floats as `attends` says, up to 2^20 of them; 1 to 256 of each
 * query, or fewer memories; each alone, without blocks. */
bool recalls(const mx::array& q, const mx::array& keys, const mx::array& values, const RecallShape& shape);

/** cpu::recall for floats: adds memories to attention that is done. q float32 [T,H,D]; keys [G,N,D], values [G,N,Dv];
 *  inverse_norms float32 [G,N]; local [T,H,Dv] of any float type; masses float32 [T,H]. -> [T,H,Dv] in local's dtype.
 *  `record` float32 [T,3,N], where not null: WRITTEN IN PLACE; the host may read what it becomes, and recall may go on
 *  with it, but no other op of the same step. */
mx::array recall(
    const mx::array& q,
    const mx::array& keys,
    const mx::array& inverse_norms,
    const mx::array& values,
    const mx::array& local,
    const mx::array& masses,
    const RecallShape& shape,
    mx::array* record = nullptr);

} // namespace parallm::cuda
