// DeepSeek-V3 and R1 (arXiv 2412.19437), V2 (arXiv 2405.04434): latent attention
// and DeepSeekMoE; Kimi K2 (arXiv 2507.20534) and Moonlight, which are V3; the
// language models of Kimi-VL (arXiv 2504.07491) and K2.5; V3.2 (arXiv 2512.02556)
// and GLM-5, whose tokens attend to few positions; GLM-4.7-Flash; Youtu-LLM
// (arXiv 2512.24618), which has no experts.
#include "base/error.h"
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

#include <cmath>

namespace parallm {

namespace {

/** Softmax over all experts; the best, or the best of the best groups. */
SparseMoe::Choose choose_like_v2(const Config& config) {
  auto how = DeepseekMoeArgs(config).selection;
  auto method = config.text("topk_method", "greedy");
  if (method == "group_limited_greedy") {
    how.group_terms = 1;
  } else if (method == "greedy" || method == "gready") { // mlx-lm's default is so written
    how.groups = 1;
  } else {
    fail(Kind::invalid, "[{}] 'topk_method' must be greedy or group_limited_greedy; got '{}'", config.where, method);
  }
  return [how](const mx::array& logits) {
    return choose_by_score(mx::softmax(mx::astype(logits, mx::float32), -1, true), {}, how);
  };
}

using MakeMoe = std::function<Decoder::Map(const std::string& name)>;

std::unique_ptr<Model> make_latent_decoder(
    const Config& config,
    Weights& weights,
    const LatentArgs& attention,
    bool quantized_again,
    const MakeMoe& moe) {
  require_text(config, "hidden_act", "silu");
  int dims = attention.hidden_size, layers = config.count("num_hidden_layers");
  float eps = config.number("rms_norm_eps", 1e-6);
  ignore_layers_from(weights, layers, config.integer("num_nextn_predict_layers", 1));
  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, attention.qk_rope_head_dim, {.traditional = true}));
  bool interleaved = config.boolean("indexer_rope_interleave", false);
  auto* index_rope = attention.index_topk == 0
      ? nullptr
      : model->keep(make_rope(config, attention.qk_rope_head_dim, {.traditional = interleaved}));
  for (int i = 0; i < layers; ++i) {
    auto name = layer_name(i);
    if (!quantized_again) { // V2's model there has the one matrix
      record_kv_b(weights, name + ".self_attn", attention);
    }
    split_kv_b(weights, name + ".self_attn", attention, quantized_again);
    LatentAttention attend(weights, name + ".self_attn", attention, rope, index_rope);
    auto mlp = name + ".mlp";
    auto feed_forward = is_deepseek_moe_layer(config, i)
        ? moe(mlp)
        : Decoder::Map(GatedMLP(weights, mlp, dims, config.count("intermediate_size")));
    model->add(pre_norm_block(weights, name, dims, eps, attend, feed_forward), attention.cache());
  }
  return model;
}

} // namespace

std::unique_ptr<Model> make_deepseek_v2(const Config& given, Weights& weights) {
  // In V2 the weights of the chosen experts don't sum to 1, whatever it says.
  auto config = with_defaults(given, {{"norm_topk_prob", false}});
  require_text(config, "scoring_func", "softmax");
  require_off(config, "norm_topk_prob");
  return make_latent_decoder(config, weights, LatentArgs(config), false, [&](const std::string& name) {
    return DeepseekMoe(weights, name, DeepseekMoeArgs(config), choose_like_v2(config));
  });
}

std::unique_ptr<Model> make_deepseek_v3(const Config& config, Weights& weights) {
  return make_latent_decoder(config, weights, LatentArgs(config), true, [&](const std::string& name) {
    return deepseek_v3_moe(config, weights, name);
  });
}

std::unique_ptr<Model> make_deepseek_v32(const Config& config, Weights& weights) {
  LatentArgs attention(config);
  attention.index_n_heads = config.count("index_n_heads");
  attention.index_head_dim = config.count("index_head_dim");
  attention.index_topk = config.count("index_topk");
  return make_latent_decoder(config, weights, attention, true, [&](const std::string& name) {
    return deepseek_v3_moe(config, weights, name);
  });
}

std::unique_ptr<Model> make_glm_moe_dsa(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"indexer_rope_interleave", true}});
  config.json["rope_scaling"] = given.object("rope_parameters").json; // for YaRN's part in the scores
  return make_deepseek_v32(config, weights);
}

std::unique_ptr<Model> make_glm4_moe_lite(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"first_k_dense_replace", 1}, {"rms_norm_eps", 1e-5}, {"rope_theta", 1e6}});
  LatentArgs attention(config);
  attention.norm_eps = config.number("rms_norm_eps");
  return make_latent_decoder(config, weights, attention, true, [&](const std::string& name) {
    return deepseek_v3_moe(config, weights, name);
  });
}

std::unique_ptr<Model> make_youtu_llm(const Config& given, Weights& weights) {
  auto config =
      with_defaults(given, {{"tie_word_embeddings", true}, {"rope_theta", 1.6e6}, {"num_nextn_predict_layers", 0}});
  require_off(config, "mlp_bias");
  LatentArgs attention(config);
  attention.norm_eps = config.number("rms_norm_eps", 1e-6);
  attention.scale =
      1 / std::sqrt(float(attention.qk_nope_head_dim + attention.qk_rope_head_dim)); // mlx-lm leaves YaRN out of it
  return make_latent_decoder(config, weights, attention, false, {});
}

std::unique_ptr<Model> make_kimi_vl(const Config& config, Weights& weights) {
  for (auto* prefix : {"vision_tower.", "vision_model.", "multi_modal_projector.", "mm_projector."}) {
    weights.ignore(prefix);
  }
  weights.rename("language_model.", "");
  return make_deepseek_v3(config.object("text_config"), weights);
}

} // namespace parallm
