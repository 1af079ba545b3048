// What one layer remembers and how it attends to it. A model hands over
// UN-rotated q and k: positions, RoPE, sliding windows, block tables, sharing
// and recall are the cache's business, and no model file knows which cache
// runs. Engine thread only.
#pragma once

#include "nn/rope.h"

#include <mlx/mlx.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace parallm {
namespace mx = mlx::core;

/** What each head sees of the positions before a query, in blocks (Phi-3-small, arXiv 2404.14219): the query's own
 * block and the `local` - 1 before it, and every `stride`-th, other heads others: block b where stride divides b + head
 * + 1. */
struct BlockSparse {
  int block = 0; // positions, a multiple of 32; 0: all are seen
  int local = 1;
  int stride = 1;
};

/** How a layer attends. */
struct Attention {
  float scale; // of q.k
  const Rope* rope = nullptr; // null: no rotation
  int window = 0; // a token sees itself and window-1 before it; 0: all
  int chunk = 0; // a token sees no position before its own chunk's start, a multiple of this; 0: all (Llama 4)
  float softcap = 0; // cap * tanh(score / cap); 0: off (Gemma 2)
  std::optional<mx::array> sinks; // [H] learned logits that take mass but give no value (gpt-oss)
  BlockSparse sparse = {};
};

/** How a layer chooses the few keys that a token attends to: by small index
 * queries and keys beside the layer's own (DeepSeek-V3.2's indexer, MiniMax M3's
 * blocks). Token t's score of position s is, for index head i, q[t,i].k[s]. */
struct KeySelector {
  mx::array q; // [T,I,Di] un-rotated
  mx::array k; // [T,Di] un-rotated
  const Rope* rope = nullptr;
  int choices = 0; // blocks that a token sees; all where there are no more
  int block = 1; // positions of a block, from multiples of it; the best of them is its score
  int local_blocks = 0; // a token's own block and those before it that are always chosen
  std::optional<mx::array> weights; // [T,I]: one choice for all heads, by the sum of weights * max(score, 0) over index
                                    // heads; nothing: each index head chooses for H/I heads
  int group = 1; // positions from multiples of it that have one key together, which lies at the last of them and is
                 // seen from there on (DeepSeek-V4's compressed keys); blocks are of groups then
  std::optional<mx::array> within; // as Chosen: where there are more blocks than choices, what may be chosen
};

/** What each token sees: bool [T,A,S], of positions of its sequence, for each of A parts of the heads; nothing: all. */
using Chosen = std::optional<mx::array>;

class Recalled; // recall.h
struct MemoryRecord; // recall.h

/** One sequence's part of a flat step: tokens [first, first + count) of the
 * step take positions [offset, offset + count); position p lives in block
 * blocks[p / block_size], place p % block_size. */
struct Span {
  int first;
  int count;
  int offset;
  std::vector<int32_t> blocks;
  int rope_length = 0; // see RowStep::rope_length
  int slot = 0; // RowStep::slot: where the sequence's states lie
  std::shared_ptr<const Recalled> recalled = nullptr; // memories, null: none; read by recall.h's caches alone
  int shift = 0; // what RoPE adds to its positions: tokens that came before and lie elsewhere
  std::shared_ptr<MemoryRecord> record = nullptr; // takes what the last token gives to its memories; null: not told
};

/** A recurrence over the tokens of sequences of one length: inputs, each
 * [B,L,...], and the B sequences' states before them, each [B,...]; gives the
 * outputs [B,L,...] and leaves the states after the last token in `states`. */
using Recurrence = std::function<mx::array(const std::vector<mx::array>& inputs, std::vector<mx::array>& states)>;

/** Attention that more keys can be added to. */
struct Attended {
  mx::array out; // [T,H,Dv]
  mx::array masses; // float32 [T,H]: the log of the sum of exp(score), sinks included
  mx::array q; // float32 [T,H,D], rotated
};

class Cache {
 public:
  virtual ~Cache() = default;
  /** q [T,H,D], k and v [T,G,D] (T tokens of the step, H query heads, G kv
   * heads) -> [T,H,Dv]. Writes k and v at their positions first; then token t
   * sees its own sequence's positions up to its own. */
  virtual mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) = 0;

  /** For layers that remember a state instead of keys: runs `f` over the step's
   * sequences, some together, with inputs [T,...] cut into theirs; a sequence
   * at its start has states of zeros. -> f's outputs as [T,...]. */
  virtual mx::array recur(const std::vector<mx::array>& inputs, const Recurrence& f) = 0;

  /** As attend, and what it takes to go on with it. Slower; on GPUs, where tokens are not all decoded by kernels/cuda,
   * by much. Not every cache can. */
  virtual Attended attend_openly(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how);

  /** As attend, of the positions that `selector` chooses, in a layer whose spec has an index_dim. Among equal scores
   * the earlier position is chosen. No window, chunk or softcap. Not every cache can. */
  virtual mx::array attend_selected(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      const Attention& how,
      const KeySelector& selector);

  /** The two halves of that, for layers that attend to what another chose: writes the index keys; and attends,
   * without sinks, where a token may see nothing (its output is 0 then, its mass -infinity). */
  virtual Chosen choose(const KeySelector& selector);
  virtual Attended
  attend_chosen(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how, const Chosen& chosen);
};

/** An array that a layer keeps of each sequence, whatever its length. */
struct StateSpec {
  mx::Shape shape;
  mx::Dtype dtype = mx::float32;
};

/** What a layer needs of its cache; a model lists one for each layer. */
struct CacheSpec {
  int kv_heads = 0; // 0: keeps no keys
  int head_dim = 0;
  int v_head_dim = 0;
  std::vector<StateSpec> states;
  int index_dim = 0; // of index keys, one a position; 0: keeps none
};

/** All layers' caches and the step that they are in. */
class Caches {
 public:
  virtual ~Caches() = default;
  virtual Cache& layer(int index) = 0;
  /** Opens a step; every `attend` until the next `begin` belongs to it. */
  virtual void begin(std::vector<Span> spans) = 0;
  /** int32 [T]: each of the step's tokens' position in its sequence. */
  virtual const mx::array& positions() = 0;
};

struct KVOptions {
  int block_size = 16;
  int blocks = 0;
  int slots = 1; // sequences that may have states at once
  mx::Dtype dtype = mx::float16;
  int bits = 0; // 8 or 4: keys and values are kept in codes of so many (affine, in groups); 0: in dtype
};

/** Whether the layers' keys can be kept in codes: heads of a multiple of 32. */
bool kv_codes_fit(const std::vector<CacheSpec>& layers);

/** Bytes that one block takes over all layers. */
size_t kv_block_bytes(const std::vector<CacheSpec>& layers, const KVOptions& options);
/** Bytes that one sequence's states take over all layers. */
size_t state_bytes(const std::vector<CacheSpec>& layers);

/** kv/paged.cpp: a pool of blocks a layer. On a CPU the attention is
 * kernels/cpu's, of decoding rows on CUDA kernels/cuda's, elsewhere (or with
 * `mlx_ops`, for tests) it is made of MLX's own ops. */
std::unique_ptr<Caches>
make_paged_caches(const std::vector<CacheSpec>& layers, KVOptions options, bool mlx_ops = false);

} // namespace parallm
