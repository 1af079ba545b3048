// MiniMax M3, the language model of it: in most layers each group of heads attends
// to few blocks of positions, which small index heads choose; norms as Gemma's,
// clamped experts chosen by biased sigmoids beside a shared one.
#include "base/error.h"
#include "models/attention.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"
#include "models/text_part.h"

namespace parallm {

namespace {

/** The choice of blocks. */
struct IndexArgs {
  int heads;
  int dims;
  int block_size;
  int topk_blocks;
  int local_blocks;

  /** As published, nested, or as transformers 5 saves it, flat. */
  static IndexArgs read(const Config& config) {
    auto nested = config.has("sparse_attention_config") ? config.object("sparse_attention_config") : Config{};
    const auto size = [&](const char* theirs, const char* flat) {
      return nested.has(theirs) ? nested.count(theirs) : config.count(flat);
    };
    int local = nested.integer("sparse_local_block", config.integer("index_local_blocks", 1));
    return {
        size("sparse_num_index_heads", "index_n_heads"),
        size("sparse_index_dim", "index_head_dim"),
        size("sparse_block_size", "index_block_size"),
        size("sparse_topk_blocks", "index_topk_blocks"),
        local};
  }
};

/** Whether a layer's tokens attend to chosen blocks only. */
bool selects(const Config& config, int layer) {
  auto nested = config.has("sparse_attention_config") ? config.object("sparse_attention_config") : Config{};
  if (!nested.has("sparse_block_size") && !config.has("index_block_size")) {
    return false;
  }
  if (config.has("layer_types")) {
    return config.texts("layer_types").at(layer) != "full_attention";
  }
  auto& owner = nested.has("sparse_attention_freq") ? nested : config;
  return !owner.has("sparse_attention_freq") || owner.integers("sparse_attention_freq").at(layer) != 0;
}

bool has_experts(const Config& config, int layer) {
  if (config.has("mlp_layer_types")) {
    return config.texts("mlp_layer_types").at(layer) == "sparse";
  }
  return !config.has("moe_layer_freq") || config.integers("moe_layer_freq").at(layer) != 0;
}

/** q and k of heads or of index heads, normed. */
struct HeadNormPair {
  HeadNormPair(Weights& weights, const std::string& name, int dims, float eps, float offset)
      : q(weights, name + "q_norm", dims, eps, offset), k(weights, name + "k_norm", dims, eps, offset) {}
  RMSNorm q;
  RMSNorm k;
};

class BlockIndex {
 public:
  BlockIndex(
      Weights& weights,
      const std::string& attention,
      const IndexArgs& args,
      int dims,
      const Rope* rope,
      float eps,
      float offset)
      : args_(args),
        rope_(rope),
        q_proj(weights, attention + ".index_q_proj", args.heads * args.dims, dims),
        k_proj(weights, attention + ".index_k_proj", args.dims, dims),
        norms(weights, attention + ".index_", args.dims, eps, offset) {}

  /** x [T,D]. */
  KeySelector operator()(const mx::array& x) const {
    auto q = mx::reshape(q_proj(x), {x.shape(0), args_.heads, args_.dims});
    return {
        .q = norms.q(q),
        .k = norms.k(k_proj(x)),
        .rope = rope_,
        .choices = args_.topk_blocks,
        .block = args_.block_size,
        .local_blocks = args_.local_blocks};
  }

 private:
  IndexArgs args_;
  const Rope* rope_;
  Linear q_proj;
  Linear k_proj;
  HeadNormPair norms;
};

struct BlockAttention {
  Projections project;
  std::optional<HeadNormPair> norms;
  std::optional<BlockIndex> index; // nothing: all positions
  Attention how;

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project(x);
    if (norms) {
      q = norms->q(q);
      k = norms->k(k);
    }
    return project.out(index ? cache.attend_selected(q, k, v, how, (*index)(x)) : cache.attend(q, k, v, how));
  }
};

/** Some conversions hold gates and ups as one, the gates first. Codes are packed along another axis. */
void split_gates(Weights& weights, const std::string& owner) {
  for (auto* part : {".weight", ".scales", ".biases"}) {
    if (auto both = weights.pull(owner + ".gate_up_proj" + part)) {
      auto parts = mx::split(*both, 2, -2);
      weights.put(owner + ".gate_proj" + part, mx::contiguous(parts[0]));
      weights.put(owner + ".up_proj" + part, mx::contiguous(parts[1]));
    }
  }
}

/** Some hold the shared expert as one more, the last. */
void unfold_shared(Weights& weights, const std::string& moe, int count) {
  for (std::string layer : {".gate_up_proj", ".gate_proj", ".up_proj", ".down_proj"}) {
    for (auto* part : {".weight", ".scales", ".biases"}) {
      auto name = moe + ".switch_mlp" + layer + part;
      auto all = weights.pull(name);
      if (all && all->ndim() == 3 && all->shape(0) == count + 1) {
        auto parts = mx::split(*all, mx::Shape{count}, 0);
        weights.put(name, mx::contiguous(parts[0]));
        weights.put(moe + ".shared_experts" + layer + part, mx::contiguous(mx::squeeze(parts[1], 0)));
      } else if (all) {
        weights.put(name, *all);
      }
    }
  }
}

Decoder::Map
experts(const Config& config, Weights& weights, const std::string& moe, int dims, const SwitchGLU::Act& act) {
  int count = config.count("num_local_experts", 128);
  Selection how{
      .choices = config.count("num_experts_per_tok", 4), .scale = float(config.number("routed_scaling_factor", 2))};
  unfold_shared(weights, moe, count);
  split_gates(weights, moe + ".switch_mlp");
  split_gates(weights, moe + ".shared_experts");
  stack_experts(weights, moe + ".experts", moe + ".switch_mlp", count, numbered_projections);
  auto choose = choose_by_biased_sigmoid(weights, moe + ".e_score_correction_bias", count, how);
  SparseMoe routed(
      weights, moe + ".gate", moe + ".switch_mlp", count, dims, config.count("intermediate_size", 3072), choose, act);
  GluMLP shared(weights, moe + ".shared_experts", dims, config.count("shared_intermediate_size", 3072), act);
  return [=](const mx::array& x) { return routed(x) + shared(x); };
}

} // namespace

std::unique_ptr<Model> make_minimax_m3_vl(const Config& given, Weights& weights) {
  auto config = with_defaults(
      text_part(given, weights, {"vision_tower.", "multi_modal_projector.", "patch_merge_mlp."}),
      {{"head_dim", 128}, {"rms_norm_eps", 1e-6}, {"tie_word_embeddings", false}});
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps");
  float offset = config.boolean("use_gemma_norm", true) ? 1 : 0;
  const bool normed = config.boolean("use_qk_norm", true);
  float alpha = config.number("swiglu_alpha", 1.702), limit = config.number("swiglu_limit", 7);
  SwitchGLU::Act act = [=](const mx::array& gate, const mx::array& up) {
    return clamped_swiglu(gate, up, alpha, limit);
  };
  auto of_rope = config.has("rope_parameters") ? config.object("rope_parameters") : config;
  double partial = of_rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 0.5));
  int rotated = config.count("rotary_dim", int(sizes.head_dim * partial));
  const auto rope_of = [&](int head_dim) {
    auto own = config;
    own.json["partial_rotary_factor"] = double(std::min(rotated, head_dim)) / head_dim;
    if (own.has("rope_parameters")) {
      own.json["rope_parameters"].as_object().erase("partial_rotary_factor");
    }
    return make_rope(own, head_dim, {.theta = 5e6});
  };

  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  model->norm = RMSNorm(weights, "model.norm", dims, eps, offset);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  auto* rope = model->keep(rope_of(sizes.head_dim));
  const Rope* index_rope = nullptr;
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i), attention = name + ".self_attn", moe = name + ".block_sparse_moe";
    BlockAttention attend{Projections(weights, attention, sizes), {}, {}, scaled_attention(sizes.head_dim, rope)};
    if (normed) {
      attend.norms.emplace(weights, attention + ".", sizes.head_dim, eps, offset);
    }
    auto spec = sizes.cache();
    if (selects(config, i)) {
      auto index = IndexArgs::read(config);
      index_rope = index_rope ? index_rope : model->keep(rope_of(index.dims));
      attend.index.emplace(weights, attention, index, dims, index_rope, eps, offset);
      spec.index_dim = index.dims;
    }
    for (auto* layer : {".gate_proj", ".up_proj", ".down_proj"}) { // a dense layer's, in some exports
      weights.rename(moe + layer, name + ".mlp" + layer);
    }
    auto feed_forward = has_experts(config, i)
        ? experts(config, weights, moe, dims, act)
        : GluMLP(weights, name + ".mlp", dims, config.count("dense_intermediate_size", 12288), act);
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", dims, eps, offset),
            std::move(attend),
            RMSNorm(weights, name + ".post_attention_layernorm", dims, eps, offset),
            std::move(feed_forward)),
        spec);
  }
  return model;
}

} // namespace parallm
