// Paged KV (vLLM's PagedAttention, arXiv 2309.06180): a pool of fixed-size
// blocks a layer, and a block table a sequence. Keys are stored rotated.
// kernels/cpu's attention and kernels/cuda's write in place; with MLX's own ops
// a write is a scatter whose output takes over the pool's memory.
#include "base/error.h"
#include "kernels/cpu/ops.h"
#include "kernels/cuda/ops.h"
#include "kv/cache.h"
#include "kv/selection.h"
#include "kv/step.h"
#include "nn/device.h"

#include <algorithm>
#include <limits>

namespace parallm {

namespace {

/** Memory that nobody touches until it is written: a big capacity costs nothing
 * until it is used. */
mx::array uninitialised(mx::Shape shape, mx::Dtype dtype) {
  size_t bytes = dtype.size();
  for (auto dim : shape) {
    bytes *= dim;
  }
  return mx::array(mx::allocator::malloc(bytes), std::move(shape), dtype);
}

/** The recurrent half of a layer's cache: its states, a slot each, and one more
 * slot that stays zero. */
class States : public Cache {
 public:
  States(const CacheSpec& spec, const KVOptions& options, Step*& step) : step_(step), slots_(options.slots) {
    for (auto& state : spec.states) {
      auto shape = state.shape;
      shape.insert(shape.begin(), slots_ + 1);
      states_.push_back(mx::zeros(shape, state.dtype));
    }
  }

  mx::array recur(const std::vector<mx::array>& inputs, const Recurrence& f) override {
    std::vector<mx::array> parts;
    auto& runs = step_->runs(slots_);
    for (auto& run : runs) {
      bool whole = runs.size() == 1 && !step_->order(); // the step's own order
      std::vector<mx::array> own;
      for (auto& input : inputs) {
        auto shape = input.shape();
        shape[0] = run.length;
        shape.insert(shape.begin(), run.rows);
        own.push_back(mx::reshape(whole ? input : mx::take(input, run.tokens, 0), shape));
      }
      std::vector<mx::array> states;
      for (auto& state : states_) {
        states.push_back(mx::take(state, run.before, 0));
      }
      auto out = f(own, states);
      for (size_t i = 0; i < states_.size(); ++i) {
        auto updates = mx::expand_dims(mx::astype(states[i], states_[i].dtype()), 1);
        states_[i] = mx::scatter(states_[i], run.slots, updates, 0);
      }
      parts.push_back(mx::flatten(out, 0, 1));
    }
    auto out = parts.size() == 1 ? parts[0] : mx::concatenate(parts, 0);
    return step_->order() ? mx::take(out, *step_->order(), 0) : out;
  }

 protected:
  Step*& step_;

 private:
  int slots_;
  std::vector<mx::array> states_; // [slots+1, ...] each
};

void check_selected(const Attention& how) {
  check(how.window == 0 && how.chunk == 0 && how.softcap == 0, "kv: a selection is of all positions");
}

class KernelLayer : public States {
 public:
  KernelLayer(const CacheSpec& spec, const KVOptions& options, Step*& step)
      : States(spec, options, step),
        block_size_(options.block_size),
        bits_(options.bits),
        k_pool_(pool(spec.kv_heads, spec.head_dim, options)),
        v_pool_(pool(spec.kv_heads, spec.v_head_dim, options)),
        index_keys_(spec.index_dim, options, step, true) {}

  mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
    return attend(q, k, v, how, nullptr, {});
  }

  mx::array attend_selected(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      const Attention& how,
      const KeySelector& selector) override {
    check_selected(how);
    return attend(q, k, v, how, nullptr, index_keys_.mask(selector));
  }

  Chosen choose(const KeySelector& selector) override {
    return index_keys_.mask(selector);
  }

  Attended attend_chosen(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      const Attention& how,
      const Chosen& chosen) override {
    check_selected(how);
    return openly(q, k, v, how, chosen);
  }

  Attended attend_openly(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
    return openly(q, k, v, how, {});
  }

 private:
  Attended
  openly(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how, const Chosen& chosen) {
    cpu::OpenAttention open{mx::array(0.0f), mx::array(0.0f)};
    auto out = attend(q, k, v, how, &open, chosen);
    return {out, open.masses, open.rotated};
  }

  mx::array attend(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      const Attention& how,
      cpu::OpenAttention* open,
      const Chosen& chosen) {
    auto* rope = how.rope;
    auto rotation = rope ? step_->rotation(*rope) : std::pair(mx::array(0.0f), mx::array(0.0f));
    return cpu::paged_attention(
        q,
        k,
        v,
        rotation.first,
        rotation.second,
        k_pool_,
        v_pool_,
        step_->spans(),
        step_->table(),
        how.sinks,
        {.block_size = block_size_,
         .scale = how.scale,
         .window = how.window,
         .chunk = how.chunk,
         .softcap = how.softcap,
         .rope_dims = rope ? rope->dims : 0,
         .rope_traditional = rope && rope->traditional,
         .kv_bits = bits_,
         .sparse_block = how.sparse.block,
         .sparse_local = how.sparse.local,
         .sparse_stride = how.sparse.stride},
        open,
        chosen);
  }

  static mx::array pool(int heads, int dim, const KVOptions& options) {
    const int width = options.bits ? static_cast<int>(cpu::kv_row_bytes(dim, options.bits)) : dim;
    return uninitialised({options.blocks, heads, options.block_size, width}, options.bits ? mx::uint8 : options.dtype);
  }

  int block_size_;
  int bits_;
  mx::array k_pool_; // [blocks, G, block_size, D or a row of codes]
  mx::array v_pool_;
  IndexKeys index_keys_;
};

/** Softmax attention in small ops, for what MLX's fused one can't do: a cap on
 * the scores. Shapes as there. */
mx::array capped_attention(
    const mx::array& q, // [B,H,L,D]
    const mx::array& k, // [B,G,S,D]
    const mx::array& v, // [B,G,S,Dv]
    const Attention& how,
    const mx::array& mask) { // bool [B,1,L,S]
  int rows = q.shape(0), heads = q.shape(1), queries = q.shape(2);
  int groups = k.shape(1), keys = k.shape(2);
  auto grouped = mx::reshape(q, {rows, groups, heads / groups, queries, q.shape(3)});
  auto scores = mx::astype(
      mx::matmul(grouped * mx::array(how.scale, q.dtype()), mx::expand_dims(mx::swapaxes(k, 2, 3), 2)), mx::float32);
  scores = mx::tanh(scores / how.softcap) * how.softcap;
  auto hidden = mx::array(-std::numeric_limits<float>::infinity());
  scores = mx::where(mx::expand_dims(mask, 2), scores, hidden);
  if (how.sinks) {
    auto sinks = mx::broadcast_to(
        mx::reshape(mx::astype(*how.sinks, mx::float32), {1, groups, heads / groups, 1, 1}),
        {rows, groups, heads / groups, queries, 1});
    scores = mx::softmax(mx::concatenate({scores, sinks}, -1), -1, true);
    scores = mx::slice(scores, {0, 0, 0, 0, 0}, {rows, groups, heads / groups, queries, keys});
  } else {
    scores = mx::softmax(scores, -1, true);
  }
  auto out = mx::matmul(mx::astype(scores, v.dtype()), mx::expand_dims(v, 2));
  return mx::reshape(out, {rows, heads, queries, v.shape(3)});
}

/** bool [1,1,L,S]: query i sees all but the last L-1-i keys. */
mx::array causal_mask(int queries, int keys) {
  auto rows = mx::expand_dims(mx::arange(keys - queries, keys), 1);
  auto columns = mx::expand_dims(mx::arange(keys), 0);
  return mx::reshape(mx::greater_equal(rows, columns), {1, 1, queries, keys});
}

/** bool [B,H,L,S]: what is seen of `mask` [B,1,L,S], which holds all positions up to each query's own. */
mx::array sparse_mask(const mx::array& mask, int heads, const BlockSparse& sparse) {
  auto block = mx::array(sparse.block);
  auto own = mx::floor_divide(mx::sum(mx::astype(mask, mx::int32), -1, true) - mx::array(1), block);
  auto blocks = mx::floor_divide(mx::arange(mask.shape(3)), block);
  auto near = mx::less(own - blocks, mx::array(sparse.local));
  auto numbers = blocks + mx::reshape(mx::arange(1, heads + 1), {heads, 1, 1});
  auto strided = mx::equal(mx::remainder(numbers, mx::array(sparse.stride)), mx::array(0));
  return mx::logical_and(mask, mx::logical_or(near, strided));
}

class OpsLayer : public States {
 public:
  OpsLayer(const CacheSpec& spec, const KVOptions& options, Step*& step, bool mlx_ops)
      : States(spec, options, step),
        options_(options),
        k_pool_(kept(mx::zeros({0, spec.kv_heads, spec.head_dim}, options.dtype))),
        v_pool_(kept(mx::zeros({0, spec.kv_heads, spec.v_head_dim}, options.dtype))),
        index_keys_(spec.index_dim, options, step, false),
        kernels_(
            cuda_kernels() && !mlx_ops && options.bits == 0 && spec.index_dim == 0 &&
            cuda::attends(options.dtype, spec.head_dim, spec.v_head_dim)) {}

  mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
    if (takes(q, k, v, how)) {
      return attend_in_place(q, k, v, how);
    }
    write(k_pool_, step_->rotate(k, how.rope));
    write(v_pool_, v);
    auto rotated = step_->rotate(q, how.rope);
    std::vector<mx::array> parts;
    for (auto& reading : step_->readings({how.window, how.chunk})) {
      parts.push_back(attend(rotated, read(k_pool_, reading), read(v_pool_, reading), reading, how));
    }
    return mx::astype(in_order(parts), q.dtype());
  }

  Attended attend_openly(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
    cuda::OpenAttention open{mx::array(0.0f), mx::array(0.0f)};
    const bool kernels = takes(q, k, v, how);
    auto out = kernels ? attend_in_place(q, k, v, how, &open) : attend(q, k, v, how);
    if (kernels && step_->only_decodes()) {
      return {out, in_order({open.masses}), in_order({open.rotated})};
    }
    auto rotated = step_->rotated(q, how);
    std::vector<mx::array> parts;
    const bool decoded = kernels && step_->decoding_rows();
    if (decoded) {
      parts.push_back(open.masses);
    }
    for (auto& reading : step_->readings({how.window, how.chunk}, !decoded)) {
      auto keys =
          kernels_ ? heads_first(cuda::read_pool(k_pool_[0], reading.slots, out), reading) : read(k_pool_, reading);
      parts.push_back(masses(rotated, keys, reading, how));
    }
    return {out, in_order(parts), rotated};
  }

  mx::array attend_selected(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      const Attention& how,
      const KeySelector& selector) override {
    check_selected(how);
    check(selector.group == 1, "kv: a layer that attends to groups' keys says what it chose");
    write(k_pool_, step_->rotate(k, how.rope));
    write(v_pool_, v);
    auto rotated = step_->rotate(q, how.rope);
    auto chosen = index_keys_.choose(selector);
    std::vector<mx::array> parts;
    for (size_t i = 0; i < chosen.size(); ++i) {
      auto& sequence = step_->sequences()[i];
      auto reading = chosen[i] ? select(sequence, *chosen[i], selector, q.shape(1)) : sequence;
      parts.push_back(attend(rotated, read(k_pool_, reading), read(v_pool_, reading), reading, how));
    }
    return mx::astype(parts.size() == 1 ? parts[0] : mx::concatenate(parts, 0), q.dtype());
  }

  Chosen choose(const KeySelector& selector) override {
    return index_keys_.mask(selector);
  }

  Attended attend_chosen(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      const Attention& how,
      const Chosen& chosen) override {
    check_selected(how);
    check(!how.sinks && (!chosen || chosen->shape(1) == 1), "kv: heads choose together");
    write(k_pool_, step_->rotate(k, how.rope));
    write(v_pool_, v);
    auto rotated = step_->rotated(q, how);
    std::vector<mx::array> outs, sums;
    for (auto reading : step_->sequences()) {
      auto any = mx::array(true);
      if (chosen) {
        const int first = reading.tokens[0], last = first + reading.queries;
        auto own = mx::slice(*chosen, {first, 0, 0}, {last, 1, reading.keys});
        reading.mask = mx::expand_dims(mx::swapaxes(own, 0, 1), 0); // [1,1,L,S]
        reading.causal = false;
        any = mx::any(own, 2); // [L,1]
      }
      auto keys = read(k_pool_, reading);
      auto out = attend(rotated, keys, read(v_pool_, reading), reading, how);
      outs.push_back(mx::where(mx::expand_dims(any, -1), out, mx::array(0.0f)));
      auto mass = masses(rotated, keys, reading, how);
      sums.push_back(mx::where(any, mass, mx::array(-std::numeric_limits<float>::infinity())));
    }
    return {mx::concatenate(outs, 0), mx::concatenate(sums, 0), rotated};
  }

 private:
  /** A single query whose heads choose together reads just what is chosen; others read all through a mask. */
  static Reading select(Reading reading, const mx::array& chosen, const KeySelector& how, int heads) {
    const int choosers = chosen.shape(0);
    reading.causal = false;
    if (reading.queries == 1 && how.block == 1 && choosers == 1) {
      reading.slots = mx::take(reading.slots, mx::flatten(chosen), 0);
      reading.keys = chosen.shape(2);
    } else {
      auto mask = mx::expand_dims(chosen_mask(chosen, how, reading.keys), 0);
      reading.mask = choosers == 1 ? mask : mx::repeat(mask, heads / choosers, 1);
    }
    return reading;
  }

  /** [tokens,H] of a reading. */
  static mx::array masses(const mx::array& all, const mx::array& k, const Reading& reading, const Attention& how) {
    int heads = all.shape(1), groups = k.shape(1), tokens = reading.rows * reading.queries;
    auto q = mx::take(all, mx::array(reading.tokens.data(), {tokens}, mx::int32), 0);
    q = mx::swapaxes(mx::reshape(q, {reading.rows, reading.queries, heads, all.shape(2)}), 1, 2);
    q = mx::reshape(q, {reading.rows, groups, heads / groups, reading.queries, all.shape(2)});
    auto keys = mx::expand_dims(mx::swapaxes(mx::astype(k, mx::float32), 2, 3), 2);
    auto scores = mx::matmul(q * mx::array(how.scale), keys);
    if (how.softcap > 0) {
      scores = mx::tanh(scores / how.softcap) * how.softcap;
    }
    if (reading.mask || reading.causal) {
      auto mask = reading.mask ? *reading.mask : causal_mask(reading.queries, reading.keys);
      scores = mx::where(mx::expand_dims(mask, 2), scores, mx::array(-std::numeric_limits<float>::infinity()));
    }
    auto sums = mx::reshape(mx::logsumexp(scores, -1), {reading.rows, heads, reading.queries});
    if (how.sinks) {
      sums = mx::logaddexp(sums, mx::reshape(mx::astype(*how.sinks, mx::float32), {1, heads, 1}));
    }
    return mx::reshape(mx::swapaxes(sums, 1, 2), {tokens, heads});
  }

  /** kernels/cuda's attention does: it sees all, and the pools hold what it takes. */
  bool takes(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) const {
    return kernels_ && how.sparse.block == 0 && q.dtype() == options_.dtype && k.dtype() == options_.dtype &&
        v.dtype() == options_.dtype;
  }

  /** By kernels/cuda, but for a prefill's sums. `open`, where there are decoding rows, takes theirs: see paged_decode.
   */
  mx::array attend_in_place(
      const mx::array& q,
      const mx::array& k,
      const mx::array& v,
      const Attention& how,
      cuda::OpenAttention* open = nullptr) {
    step_->grow(k_pool_[0]);
    step_->grow(v_pool_[0]);
    auto* rope = how.rope;
    auto rotation = rope ? step_->rotation(*rope) : std::pair(mx::array(0.0f), mx::array(0.0f));
    View view{how.window, how.chunk};
    const int rope_dims = rope ? rope->dims : 0;
    const bool traditional = rope && rope->traditional;
    auto& [cos, sin] = rotation;
    const auto decode = [&](const mx::array& queries, const std::optional<cuda::Fresh>& fresh) {
      auto& rows = *step_->decoding_rows();
      return cuda::paged_decode(
          queries,
          k_pool_[0],
          v_pool_[0],
          rows.tokens,
          rows.positions,
          rows.table,
          how.sinks ? std::optional(mx::astype(*how.sinks, mx::float32)) : std::nullopt,
          step_->most_seen(view),
          {options_.block_size, how.scale, how.window, how.chunk, how.softcap},
          fresh,
          open);
    };
    auto& slots = step_->write_slots();
    if (step_->only_decodes()) {
      return in_order({decode(q, cuda::Fresh{k, v, cos, sin, slots, rope_dims, traditional})});
    }
    auto rotated = cuda::rotate_and_write(q, k, v, cos, sin, k_pool_[0], v_pool_[0], slots, rope_dims, traditional);
    std::vector<mx::array> parts;
    if (step_->decoding_rows()) {
      parts.push_back(decode(rotated, {}));
    }
    for (auto& reading : step_->readings(view, false)) {
      auto keys = cuda::read_pool(k_pool_[0], reading.slots, rotated);
      auto values = cuda::read_pool(v_pool_[0], reading.slots, rotated);
      parts.push_back(attend(rotated, heads_first(keys, reading), heads_first(values, reading), reading, how));
    }
    return in_order(parts);
  }

  /** The readings' outputs, laid as the step's tokens. */
  mx::array in_order(const std::vector<mx::array>& parts) {
    auto out = parts.size() == 1 ? parts[0] : mx::concatenate(parts, 0);
    if (auto& order = step_->order()) {
      out = mx::take(out, *order, 0);
    }
    return out;
  }

  /** x [.., D] as the pools hold it: itself, or its codes, scales and biases. */
  std::vector<mx::array> kept(const mx::array& x) const {
    if (options_.bits == 0) {
      return {mx::astype(x, options_.dtype)};
    }
    const int group = cpu::kv_group_size(x.shape(-1));
    if (x.size() == 0) { // MLX quantizes nothing
      auto shape = x.shape();
      const int dim = shape.back();
      shape.back() = dim * options_.bits / 32;
      auto codes = mx::zeros(shape, mx::uint32);
      shape.back() = dim / group;
      return {codes, mx::zeros(shape, mx::float32), mx::zeros(shape, mx::float32)};
    }
    return mx::quantize(mx::astype(x, mx::float32), group, options_.bits);
  }

  /** x [T,G,D] to the step's slots. */
  void write(std::vector<mx::array>& pool, const mx::array& x) {
    auto parts = kept(x);
    for (size_t i = 0; i < pool.size(); ++i) {
      step_->write(pool[i], parts[i]);
    }
  }

  mx::array read(const std::vector<mx::array>& pool, const Reading& reading) {
    auto part = [&](int i) { return mx::take(pool[i], reading.slots, 0); };
    if (options_.bits == 0) {
      return heads_first(part(0), reading);
    }
    auto codes = part(0);
    const int dim = codes.shape(-1) * 32 / options_.bits;
    auto x = mx::dequantize(codes, part(1), part(2), cpu::kv_group_size(dim), options_.bits);
    return heads_first(mx::astype(x, options_.dtype), reading);
  }

  /** x [B*S,G,D] -> [B,G,S,D]. */
  static mx::array heads_first(const mx::array& x, const Reading& reading) {
    return mx::swapaxes(mx::reshape(x, {reading.rows, reading.keys, x.shape(1), x.shape(2)}), 1, 2);
  }

  /** k [B,G,S,D], v [B,G,S,Dv] of a reading. */
  mx::array
  attend(const mx::array& all, const mx::array& k, const mx::array& v, const Reading& reading, const Attention& how) {
    int tokens = reading.rows * reading.queries;
    auto places = mx::array(reading.tokens.data(), {tokens}, mx::int32);
    auto q = tokens == all.shape(0) ? all : mx::take(all, places, 0);
    q = mx::reshape(q, {reading.rows, reading.queries, all.shape(1), all.shape(2)});
    q = mx::swapaxes(q, 1, 2); // [B,H,L,D]
    auto out = [&] {
      if (how.softcap > 0) {
        auto mask = reading.mask ? *reading.mask : causal_mask(reading.queries, reading.keys);
        return capped_attention(q, k, v, how, mask);
      }
      auto sinks = how.sinks ? std::optional(mx::astype(*how.sinks, q.dtype())) : std::nullopt;
      if (how.sparse.block > 0) {
        auto mask = reading.mask ? *reading.mask : causal_mask(reading.queries, reading.keys);
        mask = sparse_mask(mask, all.shape(1), how.sparse);
        return mx::fast::scaled_dot_product_attention(q, k, v, how.scale, "", mask, sinks);
      }
      return mx::fast::scaled_dot_product_attention(
          q, k, v, how.scale, reading.causal ? "causal" : "", reading.mask, sinks);
    }();
    return mx::reshape(mx::swapaxes(out, 1, 2), {tokens, all.shape(1), v.shape(3)});
  }

  KVOptions options_;
  std::vector<mx::array> k_pool_; // [blocks*block_size, G, D], or its codes, scales and biases
  std::vector<mx::array> v_pool_;
  IndexKeys index_keys_;
  bool kernels_;
};

class PagedCaches : public Caches {
 public:
  PagedCaches(const std::vector<CacheSpec>& specs, const KVOptions& options, bool mlx_ops) : options_(options) {
    for (auto& spec : specs) {
      if (on_cpu() && !mlx_ops) {
        layers_.push_back(std::make_unique<KernelLayer>(spec, options, now_));
      } else {
        layers_.push_back(std::make_unique<OpsLayer>(spec, options, now_, mlx_ops));
      }
    }
  }

  Cache& layer(int index) override {
    check(now_, "kv: a step is open");
    return *layers_.at(index);
  }

  void begin(std::vector<Span> spans) override {
    step_.emplace(std::move(spans), options_.block_size, options_.blocks);
    now_ = &*step_;
  }

  const mx::array& positions() override {
    check(now_, "kv: a step is open");
    return now_->positions();
  }

 private:
  KVOptions options_;
  std::vector<std::unique_ptr<Cache>> layers_;
  std::optional<Step> step_;
  Step* now_ = nullptr; // what the layers read
};

} // namespace

Attended Cache::attend_openly(const mx::array&, const mx::array&, const mx::array&, const Attention&) {
  fail(Kind::internal, "[kv] this cache's attention takes no further keys");
}

mx::array
Cache::attend_selected(const mx::array&, const mx::array&, const mx::array&, const Attention&, const KeySelector&) {
  fail(Kind::internal, "[kv] this cache's attention is of all positions");
}

Chosen Cache::choose(const KeySelector&) {
  fail(Kind::internal, "[kv] this cache's attention is of all positions");
}

Attended Cache::attend_chosen(const mx::array&, const mx::array&, const mx::array&, const Attention&, const Chosen&) {
  fail(Kind::internal, "[kv] this cache's attention is of all positions");
}

bool kv_codes_fit(const std::vector<CacheSpec>& layers) {
  return std::all_of(layers.begin(), layers.end(), [](const CacheSpec& spec) {
    return spec.kv_heads == 0 || (spec.head_dim % 32 == 0 && spec.v_head_dim % 32 == 0);
  });
}

size_t kv_block_bytes(const std::vector<CacheSpec>& layers, const KVOptions& options) {
  size_t bytes = 0;
  for (const CacheSpec& spec : layers) {
    const auto row = [&](int dim) {
      return options.bits && dim ? cpu::kv_row_bytes(dim, options.bits) : dim * options.dtype.size();
    };
    bytes += size_t(options.block_size) * spec.kv_heads * (row(spec.head_dim) + row(spec.v_head_dim));
    bytes += size_t(options.block_size) * spec.index_dim * options.dtype.size();
  }
  return bytes;
}

size_t state_bytes(const std::vector<CacheSpec>& layers) {
  size_t bytes = 0;
  for (const CacheSpec& spec : layers) {
    for (const StateSpec& state : spec.states) {
      size_t size = state.dtype.size();
      for (auto dim : state.shape) {
        size *= dim;
      }
      bytes += size;
    }
  }
  return bytes;
}

std::unique_ptr<Caches> make_paged_caches(const std::vector<CacheSpec>& layers, KVOptions options, bool mlx_ops) {
  check(options.block_size > 0 && options.blocks > 0, "kv: a pool has blocks");
  return std::make_unique<PagedCaches>(layers, options, mlx_ops);
}

} // namespace parallm
