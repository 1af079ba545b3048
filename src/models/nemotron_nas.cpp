// Llama-Nemotron Super and Ultra (arXiv 2505.00949), found by a search over
// blocks (Puzzle, arXiv 2411.19146): Llama's, but each layer has its own number of
// kv heads and its own width, or a linear layer in a part's place, or nothing.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

/** `block_configs`: an object for each layer. */
std::vector<Config> block_configs(const Config& config, int layers) {
  auto* list = config.json.if_contains("block_configs");
  if (!list || !list->is_array() || int(list->get_array().size()) != layers) {
    fail(Kind::invalid, "[{}] 'block_configs' must hold an object for each of {} layers", config.where, layers);
  }
  std::vector<Config> out;
  for (auto& one : list->get_array()) {
    if (!one.is_object()) {
      fail(Kind::invalid, "[{}] 'block_configs' must hold objects", config.where);
    }
    out.push_back({one.get_object(), fmt::format("{}: block_configs[{}]", config.where, out.size())});
  }
  return out;
}

/** 2/3 of mult * dims, up to a multiple of 256. */
int intermediate_size(double mult, int dims) {
  return (int(2 * mult * dims / 3) + 255) / 256 * 256;
}

struct Part {
  Decoder::Block block; // of the normed input; nothing: there is no such part
  CacheSpec cache;
};

Part make_attention(
    const Config& how,
    Sizes sizes,
    bool bias,
    const Rope* rope,
    Weights& weights,
    const std::string& name) {
  if (how.boolean("no_op", false)) {
    return {};
  }
  if (how.boolean("replace_with_linear", false)) {
    Linear linear(weights, name + ".linear", sizes.hidden_size, sizes.hidden_size, bias);
    return {[=](const mx::array& x, Cache&) { return linear(x); }, {}};
  }
  int group = how.count("n_heads_in_group");
  if (sizes.num_attention_heads % group != 0) {
    fail(
        Kind::invalid,
        "[{}] 'n_heads_in_group' must divide 'num_attention_heads', {}; got {}",
        how.where,
        sizes.num_attention_heads,
        group);
  }
  sizes.num_key_value_heads = sizes.num_attention_heads / group;
  return {
      SelfAttention(Projections(weights, name, sizes, bias, bias), scaled_attention(sizes.head_dim, rope)),
      sizes.cache()};
}

Decoder::Map
make_feed_forward(const Config& how, int dims, Activation act, bool bias, Weights& weights, const std::string& name) {
  if (how.boolean("no_op", false)) {
    return {};
  }
  if (how.boolean("replace_with_linear", false)) {
    return Linear(weights, name + ".linear", dims, dims, bias);
  }
  return GatedMLP(weights, name, dims, intermediate_size(how.number("ffn_mult"), dims), act, bias);
}

} // namespace

std::unique_ptr<Model> make_nemotron_nas(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"rope_theta", 500000}});
  config.json["intermediate_size"] = 1; // the layers' own count
  config.json["num_key_value_heads"] = nullptr;
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  bool attention_bias = config.boolean("attention_bias", false), mlp_bias = config.boolean("mlp_bias", false);
  auto act = activation(config.text("hidden_act", "silu"));
  auto blocks = block_configs(config, sizes.num_hidden_layers);
  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    auto attention =
        make_attention(blocks[i].object("attention"), sizes, attention_bias, rope, weights, name + ".self_attn");
    auto feed_forward = make_feed_forward(blocks[i].object("ffn"), dims, act, mlp_bias, weights, name + ".mlp");
    std::optional<RMSNorm> before, between;
    if (attention.block) {
      before.emplace(weights, name + ".input_layernorm", dims, eps);
    }
    if (feed_forward) {
      between.emplace(weights, name + ".post_attention_layernorm", dims, eps);
    }
    model->add(
        [=, attend = attention.block](const mx::array& x, Cache& cache) {
          auto h = attend ? x + attend((*before)(x), cache) : x;
          return feed_forward ? h + feed_forward((*between)(h)) : h;
        },
        attention.cache);
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = untied_head(config, weights, sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
