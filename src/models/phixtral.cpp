// Phixtral (mlabonne, 2024): Phi-2's blocks with a router over the feed-forward
// parts of several fine-tunings of it.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/moe.h"

namespace parallm {

namespace {

/** mlx-lm's names for the fields, else those of the repositories ("phi-msft"). */
Config common_names(const Config& given) {
  auto config = with_names(
      given,
      {{"hidden_size", "model_dim"},
       {"hidden_size", "n_embd"},
       {"num_attention_heads", "num_heads"},
       {"num_attention_heads", "n_head"},
       {"num_hidden_layers", "num_layers"},
       {"num_hidden_layers", "n_layer"},
       {"vocab_size", "num_vocab"}});
  config = with_defaults(
      config, {{"hidden_size", 2560}, {"num_attention_heads", 32}, {"num_hidden_layers", 32}, {"vocab_size", 51200}});
  return with_defaults(config, {{"intermediate_size", 4 * config.count("hidden_size")}});
}

} // namespace

std::unique_ptr<Model> make_phixtral(const Config& given, Weights& weights) {
  auto config = common_names(given);
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  int experts = config.count("num_local_experts", 4), choices = config.count("num_experts_per_tok", 2);
  float eps = config.number("layer_norm_epsilon", 1e-5);
  auto act = activation(config.text("activation_function", "gelu_new"));
  auto model = std::make_unique<Decoder>(weights, "transformer.embd.wte", sizes);
  auto* rope = model->keep(plain_rope(config.count("rotary_dim", 32), 10000));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("transformer.h.{}", i);
    LayerNorm norm(weights, name + ".ln", dims, eps, true);
    SelfAttention attend(
        FusedProjections(weights, name + ".mixer", sizes, true, true, {.o = "out_proj", .qkv = "Wqkv"}),
        scaled_attention(sizes.head_dim, rope));
    stack_experts(weights, name + ".moe.mlp", name + ".moe.switch_mlp", experts, {{"fc1", "fc1"}, {"fc2", "fc2"}});
    Linear gate(weights, name + ".moe.gate", experts, dims);
    SwitchMLP mlp(weights, name + ".moe.switch_mlp", experts, dims, sizes.intermediate_size, act, true);
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto h = norm(x);
          return x + attend(h, cache) + mlp(h, choose_then_softmax(gate(h), choices));
        },
        sizes.cache());
  }
  model->norm = LayerNorm(weights, "lm_head.ln", dims, eps, true);
  model->head = Linear(weights, "lm_head.linear", sizes.vocab_size, dims, true);
  return model;
}

} // namespace parallm
