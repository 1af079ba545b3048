// K-EXAONE (arXiv 2601.01739): windows in most layers, no rotation in those that
// see all, DeepSeek-V3's experts.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

#include <algorithm>

namespace parallm {

namespace {

/** `is_moe_layer`: true or false for each layer. */
std::vector<bool> moe_layers(const Config& config, int layers) {
  auto* list = config.json.if_contains("is_moe_layer");
  bool fits = list && list->is_array() && int(list->get_array().size()) == layers;
  std::vector<bool> out;
  for (int i = 0; fits && i < layers; ++i) {
    auto& one = list->get_array()[i];
    fits = one.is_bool();
    out.push_back(fits && one.get_bool());
  }
  if (!fits) {
    fail(Kind::invalid, "[{}] 'is_moe_layer' must hold true or false for each of {} layers", config.where, layers);
  }
  return out;
}

} // namespace

std::unique_ptr<Model> make_exaone_moe(const Config& given, Weights& weights) {
  auto config = with_defaults(given, {{"routed_scaling_factor", 2.5}, {"rope_theta", 1e6}});
  config.json["n_routed_experts"] = config.count("num_experts");
  config.json["n_shared_experts"] = config.integer("num_shared_experts", 0);
  require_text(config, "hidden_act", "silu");
  weights.ignore("mtp.");
  GroupedAttentionArgs attention{Sizes(config)};
  auto& sizes = attention.sizes;
  float eps = config.number("rms_norm_eps", 1e-5);
  attention.norms = HeadNorms::each_head;
  attention.norm_eps = eps;
  auto windows = layer_windows(config, sizes.num_hidden_layers);
  bool some_slide = std::any_of(windows.begin(), windows.end(), [](int window) { return window > 0; });
  auto sparse = moe_layers(config, sizes.num_hidden_layers);

  auto model = usual_decoder(config, weights, sizes.hidden_size, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    auto mlp = name + ".mlp";
    bool rotates = windows[i] > 0 || !some_slide;
    auto how = scaled_attention(sizes.head_dim, rotates ? rope : nullptr, windows[i]);
    GroupedAttention attend(weights, name + ".self_attn", attention, how);
    auto feed_forward = [&]() -> Decoder::Map {
      if (!sparse[i]) {
        return GatedMLP(weights, mlp, sizes.hidden_size, sizes.intermediate_size);
      }
      weights.rename(mlp + ".e_score_correction_bias", mlp + ".gate.e_score_correction_bias");
      return deepseek_v3_moe(config, weights, mlp);
    }();
    model->add(pre_norm_block(weights, name, sizes.hidden_size, eps, attend, feed_forward), sizes.cache());
  }
  return model;
}

} // namespace parallm
