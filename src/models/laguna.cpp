// Laguna (Poolside): norms of q and k in each head, a gate a head on attention's
// output, sliding layers with a RoPE of their own, experts chosen by biased scores
// beside a shared one.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"
#include "nn/moe.h"

namespace parallm {

namespace {

SparseMoe::Choose make_choice(const Config& config, Weights& weights, const std::string& gate, int experts) {
  auto score = config.text("moe_router_score_func", "sigmoid");
  if (score != "sigmoid" && score != "sqrtsoftplus") {
    fail(Kind::invalid, "[{}] 'moe_router_score_func' must be sigmoid or sqrtsoftplus; got '{}'", config.where, score);
  }
  auto bias = weights.take(gate + ".e_score_correction_bias", {experts}, mx::float32);
  float cap = config.number("moe_router_logit_softcapping", 0);
  float scale = config.number("moe_routed_scaling_factor", 1);
  Selection how{.choices = config.count("num_experts_per_tok"), .normalize = false};
  return [=, by_root = score == "sqrtsoftplus"](const mx::array& logits) {
    auto wide = mx::astype(logits, mx::float32);
    wide = cap > 0 ? softcapped(wide, cap) : wide;
    auto choice = choose_by_score(by_root ? mx::sqrt(softplus(wide)) : mx::sigmoid(wide), bias, how);
    auto shares = choice.weights / mx::sum(choice.weights, -1, true);
    return Choice{choice.experts, shares * mx::array(scale)};
  };
}

Decoder::Map make_moe(const Config& config, Weights& weights, const std::string& mlp, int dims) {
  int experts = config.count("num_experts");
  weights.rename(mlp + ".gate.weight", mlp + ".gate.proj.weight");
  weights.rename(mlp + ".experts.e_score_correction_bias", mlp + ".gate.e_score_correction_bias");
  stack_experts(weights, mlp + ".experts", mlp + ".switch_mlp", experts);
  auto choose = make_choice(config, weights, mlp + ".gate", experts);
  SparseMoe routed(
      weights, mlp + ".gate.proj", mlp + ".switch_mlp", experts, dims, config.count("moe_intermediate_size"), choose);
  GatedMLP shared(weights, mlp + ".shared_expert", dims, config.count("shared_expert_intermediate_size"));
  return [=](const mx::array& x) { return routed(x) + shared(x); };
}

/** "dense" or "sparse" for each layer; all but the first are sparse unless said. */
std::vector<bool> sparse_layers(const Config& config, int layers) {
  std::vector<bool> sparse(layers, true);
  sparse[0] = false;
  if (config.has("mlp_layer_types")) {
    auto types = config.texts("mlp_layer_types");
    for (int i = 0; i < layers; ++i) {
      auto type = i < int(types.size()) ? types[i] : "";
      sparse[i] = type == "sparse";
      if (!sparse[i] && type != "dense") {
        fail(
            Kind::invalid,
            "[{}] 'mlp_layer_types' must say dense or sparse for {} layers; got '{}'",
            config.where,
            layers,
            type);
      }
    }
  }
  return sparse;
}

} // namespace

std::unique_ptr<Model> make_laguna(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "silu");
  weights.rename("language_model.", "");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  int dims = sizes.hidden_size, layers = sizes.num_hidden_layers;
  attention.bias = config.boolean("qkv_bias", false);
  attention.output_bias = config.boolean("attention_bias", false);
  attention.norms = HeadNorms::each_head;
  attention.norm_eps = config.number("rms_norm_eps", 1e-6);
  auto heads = config.integers("num_attention_heads_per_layer");
  heads.resize(layers, sizes.num_attention_heads);
  auto windows = layer_windows(config, layers);
  auto sparse = sparse_layers(config, layers);

  auto model = usual_decoder(config, weights, dims, attention.norm_eps);
  auto* full = model->keep(make_rope(config, sizes.head_dim, {.layer_type = "full_attention"}));
  auto* sliding = has_rope_of(config, "sliding_attention")
      ? model->keep(make_rope(config, sizes.head_dim, {.layer_type = "sliding_attention"}))
      : full;
  for (int i = 0; i < layers; ++i) {
    auto name = layer_name(i);
    sizes.num_attention_heads = heads[i];
    auto how = scaled_attention(sizes.head_dim, windows[i] > 0 ? sliding : full, windows[i]);
    GroupedAttention grouped(weights, name + ".self_attn", attention, how);
    std::optional<Linear> gate;
    if (config.boolean("gating", true)) {
      gate.emplace(weights, name + ".self_attn.g_proj", heads[i], dims);
    }
    auto attend = [=](const mx::array& x, Cache& cache) {
      auto y = grouped.attend(x, cache);
      if (gate) {
        auto open = softplus(mx::astype((*gate)(x), mx::float32));
        y = y * mx::expand_dims(mx::astype(open, y.dtype()), 2);
      }
      return grouped.out(y);
    };
    auto feed_forward = sparse[i] ? make_moe(config, weights, name + ".mlp", dims)
                                  : GatedMLP(weights, name + ".mlp", dims, sizes.intermediate_size);
    model->add(pre_norm_block(weights, name, dims, attention.norm_eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
