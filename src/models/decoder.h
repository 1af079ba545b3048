// What nearly every decoder is made of: an embedding, blocks, a last norm and an
// output layer. A model's file says what its blocks are and puts them in.
// Engine thread only.
#pragma once

#include "models/config.h"
#include "models/head.h"
#include "models/model.h"
#include "nn/embedding.h"
#include "nn/linear.h"

#include <functional>

namespace parallm {

/** The sizes that nearly every config.json has, by their names there. Without
 * `num_key_value_heads` each head has its own; without `head_dim` the heads
 * share hidden_size. */
struct Sizes {
  explicit Sizes(const Config& config);

  int hidden_size;
  int num_hidden_layers;
  int intermediate_size;
  int num_attention_heads;
  int num_key_value_heads;
  int head_dim;
  int vocab_size;

  CacheSpec cache() const {
    return {num_key_value_heads, head_dim, head_dim};
  }
};

/** Each layer's sliding window, 0 where it sees all: `layer_types` says which
 * slide by `sliding_window`; without it all but every `pattern`-th do, or none
 * where the pattern is 0. */
std::vector<int> layer_windows(const Config& config, int layers, int pattern = 0);

/** One window for all layers from `sliding_window`, 0 where that is absent. */
std::vector<int> same_windows(const Config& config, int layers);

/** Qwen's: by `layer_types`, else `use_sliding_window` (off unless said) slides
 * in the layers from `max_window_layers` on. */
std::vector<int> late_windows(const Config& config, int layers);

/** Errors: invalid, unless `field` is absent or says `wanted`. */
void require_text(const Config& config, const std::string& field, const std::string& wanted);
void require_off(const Config& config, const std::string& field);

class Decoder : public Model {
 public:
  using Map = std::function<mx::array(const mx::array&)>;
  using Block = std::function<mx::array(const mx::array& x, Cache& cache)>;

  Decoder(Embedding embedding, int vocabulary) : embedding_(std::move(embedding)), vocabulary_(vocabulary) {}
  Decoder(Weights& weights, const std::string& embedding, const Sizes& sizes)
      : Decoder(Embedding(weights, embedding, sizes.vocab_size, sizes.hidden_size), sizes.vocab_size) {}

  /** Blocks point to what this returns. */
  const Rope* keep(Rope rope);
  void add(Block block, CacheSpec spec);

  Map norm; // the last
  std::optional<Linear> head; // nothing: the embedding is the output layer
  std::function<mx::array(const mx::array& x, Caches& caches)> embedded; // what is done to the embedding, if anything
  Map scored; // what is done to the logits, if anything

  mx::array hidden(const mx::array& ids, Caches& caches) override;
  mx::array logits(const mx::array& hidden) override;
  std::vector<CacheSpec> cache_specs() const override {
    return specs_;
  }
  int vocabulary() const override {
    return vocabulary_;
  }
  int own_kv_past() const override;

 private:
  Embedding embedding_;
  int vocabulary_;
  std::vector<Block> blocks_;
  std::vector<CacheSpec> specs_;
  std::vector<std::unique_ptr<const Rope>> ropes_;
};

/** The usual block: x + attention of its norm, then the same with the
 * feed-forward part. */
template <class Attend, class Feed, class Norm>
class PreNormBlock {
 public:
  PreNormBlock(Norm first, Attend attend, Norm second, Feed feed)
      : first_(std::move(first)), attend_(std::move(attend)), second_(std::move(second)), feed_(std::move(feed)) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto h = add_residual(x, attend_(first_(x), cache));
    return add_residual(h, feed_(second_(h)));
  }

 private:
  Norm first_;
  Attend attend_;
  Norm second_;
  Feed feed_;
};

/** x by a number, in x's dtype. */
mx::array scaled(const mx::array& x, float factor);
/** cap * tanh(x / cap). */
mx::array softcapped(const mx::array& x, float cap);

} // namespace parallm
