// GPT-2 (Radford et al., 2019) and GPT-BigCode (SantaCoder and StarCoder, arXiv
// 2301.03988, 2305.06161), which has one kv head: learned positions, layer norms,
// biases, a plain feed-forward part.
#include "base/error.h"
#include "models/attention.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

struct Gpt2Args : Sizes {
  explicit Gpt2Args(const Config& config)
      : Sizes(config),
        n_positions(config.count("n_positions")),
        layer_norm_epsilon(config.number("layer_norm_epsilon", 1e-5)),
        attention_bias(config.boolean("attention_bias", true)),
        mlp_bias(config.boolean("mlp_bias", true)),
        act(activation(config.text("activation_function"))) {}

  int n_positions;
  float layer_norm_epsilon;
  bool attention_bias;
  bool mlp_bias;
  Activation act;
};

Config common_names(const Config& given) {
  auto config = with_names(
      given,
      {{"hidden_size", "n_embd"},
       {"num_hidden_layers", "n_layer"},
       {"num_attention_heads", "n_head"},
       {"intermediate_size", "n_inner"}});
  for (auto* variant : {"scale_attn_by_inverse_layer_idx", "add_cross_attention"}) {
    require_off(config, variant);
  }
  return with_defaults(config, {{"intermediate_size", 4 * config.count("hidden_size")}});
}

/** `root`: what all names begin with. */
std::unique_ptr<Decoder> make(const Gpt2Args& args, Weights& weights, const std::string& root) {
  int dims = args.hidden_size;
  float eps = args.layer_norm_epsilon;
  auto model = std::make_unique<Decoder>(weights, root + "wte", args);
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto name = fmt::format("{}h.{}", root, i);
    model->add(
        PreNormBlock(
            LayerNorm(weights, name + ".ln_1", dims, eps, true),
            SelfAttention(
                FusedProjections(
                    weights,
                    name + ".attn",
                    args,
                    args.attention_bias,
                    args.attention_bias,
                    {.o = "c_proj", .qkv = "c_attn"}),
                scaled_attention(args.head_dim, nullptr)),
            LayerNorm(weights, name + ".ln_2", dims, eps, true),
            MLP(weights,
                name + ".mlp",
                dims,
                args.intermediate_size,
                args.act,
                args.mlp_bias,
                {.up = "c_fc", .down = "c_proj"})),
        args.cache());
  }
  model->norm = LayerNorm(weights, root + "ln_f", dims, eps, true);
  // A context longer than the table (--max-context) reads its last row for what is past it.
  model->embedded = [wpe = Embedding(weights, root + "wpe", args.n_positions, dims), last = args.n_positions - 1](
                        const mx::array& x, Caches& caches) {
    return x + wpe(mx::minimum(caches.positions(), mx::array(last)));
  };
  return model;
}

/** OpenAI's names have no root, or "transformer."; their matrices are stored with
 * inputs first, and beside them lies the causal mask. */
void to_ours(Weights& weights, int layers) {
  if (weights.has("model.wte.weight")) {
    return;
  }
  weights.rename("transformer.", "model.");
  for (std::string part : {"wte.", "wpe.", "h.", "ln_f."}) {
    weights.rename(part, "model." + part);
  }
  for (int i = 0; i < layers; ++i) {
    auto name = fmt::format("model.h.{}", i);
    weights.ignore(name + ".attn.bias");
    weights.ignore(name + ".attn.masked_bias");
    for (auto* matrix : {".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight"}) {
      if (auto stored = weights.pull(name + matrix)) {
        weights.put(name + matrix, mx::contiguous(mx::transpose(*stored)));
      }
    }
  }
}

} // namespace

std::unique_ptr<Model> make_gpt2(const Config& given, Weights& weights) {
  auto config =
      with_defaults(common_names(given), {{"activation_function", "gelu_new"}, {"tie_word_embeddings", true}});
  Gpt2Args args(config);
  to_ours(weights, args.num_hidden_layers);
  auto model = make(args, weights, "model.");
  model->head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  return model;
}

std::unique_ptr<Model> make_gpt_bigcode(const Config& given, Weights& weights) {
  auto config =
      with_defaults(common_names(given), {{"activation_function", "gelu_pytorch_tanh"}, {"tie_word_embeddings", true}});
  if (!config.boolean("multi_query", true)) {
    fail(Kind::invalid, "[{}] 'multi_query' must be true; got false", config.where);
  }
  config.json["num_key_value_heads"] = 1;
  Gpt2Args args(config);
  for (int i = 0; i < args.num_hidden_layers; ++i) { // the causal mask
    weights.ignore(fmt::format("transformer.h.{}.attn.bias", i));
    weights.ignore(fmt::format("transformer.h.{}.attn.masked_bias", i));
  }
  auto model = make(args, weights, "transformer.");
  model->head = untied_head(config, weights, args.vocab_size, args.hidden_size);
  return model;
}

} // namespace parallm
