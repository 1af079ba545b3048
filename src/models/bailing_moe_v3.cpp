// Ling's third generation, whose config.json says bailing_hybrid, too: Kimi Delta
// Attention in most layers, latent attention with a gate a head in the rest, and
// DeepSeek-V3's choice among experts.
#include "base/error.h"
#include "models/kimi_delta_attention.h"
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

#include <limits>

namespace parallm {

namespace {

/** config.json's names to DeepSeek's, which their parts read. */
Config with_deepseek_names(const Config& given) {
  return with_names(
      with_defaults(
          given, {{"n_group", 8}, {"topk_group", 4}, {"routed_scaling_factor", 2.5}, {"num_shared_experts", 1}}),
      {{"n_routed_experts", "num_experts"}});
}

Decoder::Map make_moe(const Config& config, Weights& weights, const std::string& name) {
  DeepseekMoeArgs args(config);
  args.selection.outside = -std::numeric_limits<float>::infinity();
  auto choose = choose_by_biased_sigmoid(weights, name + ".gate.expert_bias", args.n_routed_experts, args.selection);
  DeepseekMoe routed(weights, name, args, choose);
  int hidden = config.count("moe_shared_expert_intermediate_size", args.moe_intermediate_size) *
      config.count("num_shared_experts");
  GatedMLP shared(weights, name + ".shared_experts", args.hidden_size, hidden);
  return [=](const mx::array& x) { return routed(x) + shared(x); };
}

/** The last of each group of layers, and those left over, are not. */
bool is_linear(const Config& config, int layer) {
  int group = config.count("layer_group_size", 4), layers = config.count("num_hidden_layers");
  return (layer + 1) % group != 0 && layer < layers / group * group;
}

} // namespace

std::unique_ptr<Model> make_bailing_moe_v3(const Config& given, Weights& weights) {
  auto config = with_deepseek_names(given);
  require_text(config, "hidden_act", "silu");
  for (auto* field : {"no_kda_lora", "kda_safe_gate", "rope_interleave"}) {
    if (!config.boolean(field, true)) {
      fail(Kind::invalid, "[{}] '{}' must be true; got false", config.where, field);
    }
  }
  int layers = config.count("num_hidden_layers"), vocabulary = config.count("vocab_size");
  ignore_layers_from(weights, layers, config.integer("num_nextn_predict_layers", 1));
  LatentArgs latent(config);
  latent.norm_eps = config.number("rms_norm_eps", 1e-6);
  latent.output = "dense";
  int dims = latent.hidden_size, heads = latent.num_attention_heads;
  KimiDeltaArgs delta{
      .hidden = dims,
      .heads = heads,
      .head_dim = config.count("head_dim", 128),
      .kernel = config.count("short_conv_kernel_size", 4),
      .eps = latent.norm_eps,
      .narrow_decay = false,
      .narrow_gate = false,
      .flat = true,
      .least_log_decay = float(config.number("kda_lower_bound", -5)),
      .conv = "_conv1d"};

  auto model = std::make_unique<Decoder>(Embedding(weights, "model.word_embeddings", vocabulary, dims), vocabulary);
  auto positions = config;
  positions.json["partial_rotary_factor"] = 1.0; // of what latent attention rotates
  auto* rope = model->keep(make_rope(positions, latent.qk_rope_head_dim, {.theta = 6e6, .traditional = true}));
  for (int i = 0; i < layers; ++i) {
    auto name = layer_name(i), part = name + ".attention";
    auto attend = [&]() -> Decoder::Block {
      if (is_linear(config, i)) {
        return KimiDeltaAttention(delta, weights, part);
      }
      split_kv_b(weights, part, latent, false);
      LatentAttention attention(weights, part, latent, rope);
      Linear gate(weights, part + ".g_proj", heads, dims);
      return [=](const mx::array& x, Cache& cache) {
        auto open = mx::sigmoid(mx::astype(gate(x), mx::float32));
        auto y = attention.attend(x, cache);
        return attention.out(y * mx::expand_dims(mx::astype(open, y.dtype()), 2));
      };
    }();
    auto feed_forward = i < config.integer("first_k_dense_replace", 1)
        ? Decoder::Map(GatedMLP(weights, name + ".mlp", dims, config.count("intermediate_size")))
        : make_moe(config, weights, name + ".mlp");
    model->add(
        pre_norm_block(weights, name, dims, latent.norm_eps, attend, feed_forward),
        is_linear(config, i) ? KimiDeltaAttention::cache_spec(delta, weights.dtype()) : latent.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, latent.norm_eps);
  model->head = untied_head(config, weights, vocabulary, dims);
  return model;
}

} // namespace parallm
