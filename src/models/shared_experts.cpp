#include "models/shared_experts.h"

#include "base/error.h"

namespace parallm {

DeepseekMoeArgs::DeepseekMoeArgs(const Config& config)
    : hidden_size(config.count("hidden_size")),
      moe_intermediate_size(config.count("moe_intermediate_size")),
      n_routed_experts(config.count("n_routed_experts")),
      n_shared_experts(config.integer("n_shared_experts", 0)),
      selection{
          .choices = config.count("num_experts_per_tok"),
          .groups = config.count("n_group", 1),
          .kept_groups = config.count("topk_group", 1),
          .normalize = config.boolean("norm_topk_prob", true),
          .scale = float(config.number("routed_scaling_factor", 1))} {
  auto& s = selection;
  if (s.choices > n_routed_experts || n_routed_experts % s.groups != 0 || s.kept_groups > s.groups) {
    fail(
        Kind::invalid,
        "[{}] 'num_experts_per_tok' {}, 'n_group' {} and 'topk_group' {} don't fit {} experts",
        config.where,
        s.choices,
        s.groups,
        s.kept_groups,
        n_routed_experts);
  }
}

DeepseekMoe::DeepseekMoe(
    Weights& weights,
    const std::string& name,
    const DeepseekMoeArgs& args,
    SparseMoe::Choose choose,
    const DeepseekMoeNames& names)
    : routed_([&] {
        auto experts = name + "." + names.experts;
        stack_experts(weights, name + "." + names.separate, experts, args.n_routed_experts);
        return SparseMoe(
            weights,
            name + "." + names.gate,
            experts,
            args.n_routed_experts,
            args.hidden_size,
            args.moe_intermediate_size,
            std::move(choose));
      }()) {
  if (args.n_shared_experts > 0) {
    int hidden = args.moe_intermediate_size * args.n_shared_experts;
    shared_.emplace(weights, name + "." + names.shared, args.hidden_size, hidden);
  }
}

mx::array DeepseekMoe::operator()(const mx::array& x) const {
  auto y = routed_(x);
  return shared_ ? y + (*shared_)(x) : y;
}

SparseMoe::Choose choose_by_biased_sigmoid(Weights& weights, const std::string& bias, int experts, Selection how) {
  auto b = weights.take(bias, {experts}, mx::float32);
  return [=](const mx::array& logits) { return choose_by_score(mx::sigmoid(mx::astype(logits, mx::float32)), b, how); };
}

DeepseekMoe
deepseek_v3_moe(const Config& config, Weights& weights, const std::string& name, const DeepseekMoeNames& names) {
  require_text(config, "scoring_func", "sigmoid");
  require_text(config, "topk_method", "noaux_tc");
  DeepseekMoeArgs args(config);
  auto choose = choose_by_biased_sigmoid(weights, name + "." + names.bias, args.n_routed_experts, args.selection);
  return DeepseekMoe(weights, name, args, choose, names);
}

bool is_deepseek_moe_layer(const Config& config, int layer) {
  return config.has("n_routed_experts") && layer >= config.integer("first_k_dense_replace", 0) &&
      layer % config.count("moe_layer_freq", 1) == 0;
}

void ignore_layers_from(Weights& weights, int first, int count) {
  for (int i = first; i < first + count; ++i) {
    weights.ignore(fmt::format("model.layers.{}.", i));
  }
}

} // namespace parallm
