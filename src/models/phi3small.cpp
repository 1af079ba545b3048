// Phi-3-small (arXiv 2404.14219): muP's factors, GEGLU with bounds, and layers in
// turn that see blocks, each head its own, and all.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

#include <limits>
#include <numeric>

namespace parallm {

namespace {

/** gate * sigmoid(1.702 * gate) * (up + 1), gate below `limit`, up within it; they lie in turn. */
class BoundedMLP {
 public:
  BoundedMLP(Weights& weights, const std::string& name, const Sizes& sizes, float limit)
      : limit_(limit),
        up_proj(weights, name + ".up_proj", 2 * sizes.intermediate_size, sizes.hidden_size, true),
        down_proj(weights, name + ".down_proj", sizes.hidden_size, sizes.intermediate_size, true) {}

  mx::array operator()(const mx::array& x) const {
    auto both = mx::reshape(up_proj(x), {x.shape(0), -1, 2});
    auto parts = mx::split(both, 2, 2);
    auto most = mx::array(limit_, x.dtype());
    auto gate = mx::minimum(mx::squeeze(parts[0], 2), most);
    auto up = mx::clip(mx::squeeze(parts[1], 2), mx::negative(most), most);
    return down_proj(gate * mx::sigmoid(scaled(gate, 1.702f)) * (up + mx::array(1, x.dtype())));
  }

 private:
  float limit_;
  Linear up_proj;
  Linear down_proj;
};

/** One layer that gives each kv head's queries, its key and its value. */
class GroupedProjections {
 public:
  GroupedProjections(Weights& weights, const std::string& name, const Sizes& sizes)
      : sizes_(sizes),
        query_key_value(
            weights,
            name + ".query_key_value",
            (sizes.num_attention_heads + 2 * sizes.num_key_value_heads) * sizes.head_dim,
            sizes.hidden_size,
            true),
        dense(weights, name + ".dense", sizes.hidden_size, sizes.hidden_size, true) {}

  Heads operator()(const mx::array& x) const {
    int groups = sizes_.num_key_value_heads, shared = sizes_.num_attention_heads / groups;
    auto all = mx::reshape(query_key_value(x), {x.shape(0), groups, shared + 2, sizes_.head_dim});
    auto parts = mx::split(all, mx::Shape{shared, shared + 1}, 2);
    return {mx::flatten(parts[0], 1, 2), mx::squeeze(parts[1], 2), mx::squeeze(parts[2], 2)};
  }

  mx::array out(const mx::array& y) const {
    return dense(y);
  }

 private:
  Sizes sizes_;
  Linear query_key_value;
  Linear dense;
};

BlockSparse block_sparse(const Config& config) {
  BlockSparse sparse{
      .block = config.count("blocksparse_block_size", 64),
      .local = config.count("blocksparse_num_local_blocks", 16),
      .stride = config.count("blocksparse_vert_stride", 8)};
  if (sparse.block % 32 != 0) {
    fail(Kind::invalid, "[{}] 'blocksparse_block_size' must be a multiple of 32; got {}", config.where, sparse.block);
  }
  return sparse;
}

/** bool [vocabulary]: ids that stand for no token. */
mx::array unused_ids(int vocabulary) {
  std::vector<int> ids(vocabulary);
  std::iota(ids.begin(), ids.end(), 0);
  mx::array all(ids.data(), {vocabulary}, mx::int32);
  auto unused = mx::greater_equal(all, mx::array(100267));
  for (int id : {100256, 100258, 100259, 100260, 100264, 100265}) {
    unused = mx::logical_or(unused, mx::equal(all, mx::array(id)));
  }
  mx::eval(unused);
  return unused;
}

} // namespace

std::unique_ptr<Model> make_phi3small(const Config& given, Weights& weights) {
  auto config = with_names(given, {{"intermediate_size", "ff_intermediate_size"}});
  require_text(config, "hidden_act", "gegelu");
  require_off(config, "blocksparse_homo_head_pattern");
  if (config.has("rope_scaling")) {
    fail(Kind::invalid, "[{}] 'rope_scaling' must be absent", config.where);
  }
  Sizes sizes(config);
  int dims = sizes.hidden_size, dense_every = config.count("dense_attention_every_n_layers");
  float eps = config.number("layer_norm_epsilon"), limit = config.number("gegelu_limit");
  auto sparse = block_sparse(config);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto rope = plain_rope(sizes.head_dim, config.number("rope_embedding_base", 1e6));
  for (auto& frequency : rope.inverse_frequencies) {
    frequency *= config.number("rope_position_scale", 1);
  }
  auto* kept = model->keep(std::move(rope));
  auto how = scaled_attention(sizes.head_dim, kept);
  if (config.boolean("mup_use_scaling", true)) {
    how.scale = config.number("mup_attn_multiplier", 1) / sizes.head_dim;
  }
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    how.sparse = (i + 1) % dense_every == 0 ? BlockSparse{} : sparse;
    model->add(
        PreNormBlock(
            LayerNorm(weights, name + ".input_layernorm", dims, eps, true),
            SelfAttention(GroupedProjections(weights, name + ".self_attn", sizes), how),
            LayerNorm(weights, name + ".post_attention_layernorm", dims, eps, true),
            BoundedMLP(weights, name + ".mlp", sizes, limit)),
        sizes.cache());
  }
  model->norm = LayerNorm(weights, "model.final_layernorm", dims, eps, true);
  if (float by = config.number("mup_embedding_multiplier", 10); by != 0) {
    model->embedded = [by](const mx::array& x, Caches&) { return scaled(x, by); };
  }
  float width = config.number("mup_width_multiplier", 8);
  model->scored = [=, unused = unused_ids(sizes.vocab_size)](const mx::array& x) {
    auto y = width != 0 ? x / mx::array(width, x.dtype()) : x;
    return mx::where(unused, mx::array(-std::numeric_limits<float>::infinity(), y.dtype()), y);
  };
  return model;
}

} // namespace parallm
