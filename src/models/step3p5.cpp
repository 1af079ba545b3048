// Step 3.5 Flash (StepFun): sliding layers with heads of their own; a gate a head
// on attention's output; RoPE by layer; experts chosen by biased sigmoids, clamped
// in some layers, beside a shared one.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

#include <map>
#include <sstream>

namespace parallm {

namespace {

/** min(silu(gate), limit) * clip(up): no limit where it is 0. */
GluAct clamped(float limit) {
  if (limit <= 0) {
    return swiglu;
  }
  return [limit](const mx::array& gate, const mx::array& up) {
    auto bound = mx::array(limit, gate.dtype());
    return mx::minimum(silu(gate), bound) * mx::clip(up, mx::negative(bound), bound);
  };
}

/** The limit of a layer, 0 where the list doesn't say. */
float limit_of(const Config& config, const char* field, int layer) {
  if (!config.has(field)) {
    return 0;
  }
  auto limits = config.numbers(field);
  return layer < int(limits.size()) ? limits[layer] : 0;
}

Decoder::Map make_moe(const Config& config, Weights& weights, const std::string& name, int dims, int layer) {
  int experts = config.count("moe_num_experts", 288);
  Selection how{
      .choices = config.count("moe_top_k", 8),
      .normalize = config.boolean("norm_expert_weight", true),
      .scale = float(config.number("moe_router_scaling_factor", 3))};
  SparseMoe routed(
      weights,
      name + ".gate.gate",
      name + ".switch_mlp",
      experts,
      dims,
      config.count("moe_intermediate_size", 1280),
      choose_by_biased_sigmoid(weights, name + ".gate.router_bias", experts, how),
      clamped(limit_of(config, "swiglu_limits", layer)));
  GluMLP shared(
      weights,
      name + ".share_expert",
      dims,
      config.count("share_expert_dim", 1280),
      clamped(limit_of(config, "swiglu_limits_shared", layer)));
  return [=](const mx::array& x) { return routed(x) + shared(x); };
}

/** Which layers have experts: "3,4,5", or all but the first. */
std::vector<bool> sparse_layers(const Config& config, int layers) {
  std::vector<bool> sparse(layers, true);
  sparse[0] = false;
  if (config.has("moe_layers_enum")) {
    sparse.assign(layers, false);
    std::istringstream list(config.text("moe_layers_enum"));
    for (std::string item; std::getline(list, item, ',');) {
      size_t end = 0;
      int layer = item.find_first_of("0123456789") == std::string::npos ? -1 : std::stoi(item, &end);
      if (layer < 0 || layer >= layers) {
        fail(Kind::invalid, "[{}] 'moe_layers_enum' must list layers; got '{}'", config.where, item);
      }
      sparse[layer] = true;
    }
  }
  return sparse;
}

/** Each layer's RoPE by `rope_theta` (one for all or a list), `partial_rotary_factors` and `yarn_only_types`, the kinds
 * of layer that are scaled. */
class Ropes {
 public:
  Ropes(Decoder& model, const Config& config, int head_dim) : model_(model), config_(config), head_dim_(head_dim) {
    auto* theta = config.json.if_contains("rope_theta");
    if (theta && theta->is_array()) {
      thetas_ = config.numbers("rope_theta");
    }
    if (config.has("partial_rotary_factors")) {
      partials_ = config.numbers("partial_rotary_factors");
    }
    if (config.has("yarn_only_types")) {
      scaled_types_ = config.texts("yarn_only_types");
    }
  }

  const Rope* of(int layer, const std::string& type) {
    auto config = config_;
    if (!thetas_.empty()) {
      config.json["rope_theta"] = thetas_.at(layer);
    }
    config.json["partial_rotary_factor"] = layer < int(partials_.size()) ? partials_[layer] : 1.0;
    bool scaled =
        scaled_types_.empty() || std::find(scaled_types_.begin(), scaled_types_.end(), type) != scaled_types_.end();
    if (!scaled) {
      config.json.erase("rope_scaling");
    }
    auto key = std::tuple(config.number("rope_theta", 10000), config.number("partial_rotary_factor"), scaled);
    auto [found, isnew] = ropes_.emplace(key, nullptr);
    if (isnew) {
      found->second = model_.keep(make_rope(config, head_dim_));
    }
    return found->second;
  }

 private:
  Decoder& model_;
  Config config_;
  int head_dim_;
  std::vector<double> thetas_;
  std::vector<double> partials_;
  std::vector<std::string> scaled_types_;
  std::map<std::tuple<double, double, bool>, const Rope*> ropes_;
};

/** StepFun's names to mlx-lm's; their norms are stored less one. */
void to_ours(Weights& weights, int layers) {
  bool theirs = false;
  for (int i = 0; i < layers; ++i) {
    auto layer = fmt::format("model.layers.{}.", i), moe = layer + "moe.", mlp = layer + "mlp.";
    theirs = theirs || weights.has(moe + "gate.weight") || weights.has(layer + "share_expert.gate_proj.weight");
    weights.rename(moe + "gate.", mlp + "gate.gate.");
    weights.rename(moe + "router_bias", mlp + "gate.router_bias");
    for (std::string part : {"gate_proj.", "up_proj.", "down_proj."}) {
      weights.rename(moe + part, fmt::format("{}switch_mlp.{}", mlp, part));
    }
    weights.rename(layer + "share_expert.", mlp + "share_expert.");
  }
  if (!theirs) {
    return;
  }
  for (auto& name : weights.names_ending("norm.weight")) {
    auto stored = *weights.pull(name);
    weights.put(name, stored + mx::array(1, stored.dtype()));
  }
}

class HeadGate {
 public:
  HeadGate(Weights& weights, const std::string& name, int heads, int dims) : g_proj(weights, name, heads, dims) {}

  mx::array operator()(const mx::array& attended, const mx::array& x) const {
    return attended * mx::expand_dims(mx::sigmoid(g_proj(x)), 2);
  }

 private:
  Linear g_proj;
};

} // namespace

std::unique_ptr<Model> make_step3p5(const Config& given, Weights& weights) {
  auto config = with_names(given, {{"num_key_value_heads", "num_attention_groups"}});
  require_text(config, "hidden_act", "silu");
  require_off(config, "tie_word_embeddings");
  Sizes full(config), sliding = full;
  if (config.has("attention_other_setting")) {
    auto other = config.object("attention_other_setting");
    sliding.num_attention_heads = other.count("num_attention_heads");
    sliding.num_key_value_heads = other.count("num_attention_groups");
  }
  int dims = full.hidden_size, layers = full.num_hidden_layers;
  float eps = config.number("rms_norm_eps", 1e-5);
  if (!config.has("layer_types")) {
    for (int i = 0; i < layers; ++i) {
      auto& types = config.json["layer_types"];
      (i == 0 ? types.emplace_array() : types.as_array())
          .emplace_back(i % 2 == 0 ? "sliding_attention" : "full_attention");
    }
  }
  config = with_defaults(config, {{"sliding_window", 512}});
  auto windows = layer_windows(config, layers);
  auto types = config.texts("layer_types");
  auto sparse = sparse_layers(config, layers);
  ignore_layers_from(weights, layers, 8); // they draft several tokens
  to_ours(weights, layers);

  auto model = std::make_unique<Decoder>(weights, "model.embed_tokens", full);
  Ropes ropes(*model, config, full.head_dim);
  for (int i = 0; i < layers; ++i) {
    auto name = fmt::format("model.layers.{}", i), part = name + ".self_attn";
    auto& sizes = windows[i] > 0 ? sliding : full;
    auto how = scaled_attention(sizes.head_dim, ropes.of(i, types[i]), windows[i]);
    Projections project(weights, part, sizes);
    RMSNorm q_norm(weights, part + ".q_norm", sizes.head_dim, eps);
    RMSNorm k_norm(weights, part + ".k_norm", sizes.head_dim, eps);
    std::optional<HeadGate> gate;
    if (config.boolean("use_head_wise_attn_gate", true)) {
      gate.emplace(weights, part + ".g_proj", sizes.num_attention_heads, dims);
    }
    auto attend = [=](const mx::array& x, Cache& cache) {
      auto [q, k, v] = project(x);
      auto y = cache.attend(q_norm(q), k_norm(k), v, how);
      return project.out(gate ? (*gate)(y, x) : y);
    };
    auto feed_forward = [&]() -> Decoder::Map {
      auto mlp = name + ".mlp";
      if (!sparse[i]) {
        return GluMLP(weights, mlp, dims, full.intermediate_size, clamped(limit_of(config, "swiglu_limits_shared", i)));
      }
      return make_moe(config, weights, mlp, dims, i);
    }();
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".input_layernorm", dims, eps),
            attend,
            RMSNorm(weights, name + ".post_attention_layernorm", dims, eps),
            feed_forward),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = Linear(weights, "lm_head", full.vocab_size, dims);
  return model;
}

} // namespace parallm
