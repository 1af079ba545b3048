// Nemotron-H and Nemotron 3 (arXiv 2504.03624, 2512.20848): layers of one part
// each, Mamba-2, attention without positions, a plain feed-forward part or
// experts, in the order that config.json says.
#include "base/error.h"
#include "models/attention.h"
#include "models/mamba2_layer.h"
#include "models/shared_experts.h"
#include "nn/mlp.h"
#include "nn/moe.h"

namespace parallm {

namespace {

/** A letter a layer: M (Mamba-2), * (attention), - (feed-forward), E (experts). */
std::string layer_letters(const Config& config) {
  constexpr struct {
    const char* type;
    char letter;
  } types[] = {
      {"mamba", 'M'},
      {"linear_attention", 'M'},
      {"conv", 'M'},
      {"attention", '*'},
      {"full_attention", '*'},
      {"mlp", '-'},
      {"moe", 'E'},
      {"M", 'M'},
      {"*", '*'},
      {"-", '-'},
      {"E", 'E'},
  };
  auto* field = config.has("hybrid_override_pattern") ? "hybrid_override_pattern"
      : config.has("layers_block_type")               ? "layers_block_type"
                                                      : "layer_types";
  auto* value = config.json.if_contains(field);
  std::vector<std::string> names;
  if (value && value->is_string()) {
    for (char letter : config.text(field)) {
      names.emplace_back(1, letter);
    }
  } else {
    names = config.texts(field);
  }
  std::string letters;
  for (auto& name : names) {
    auto* found = std::find_if(std::begin(types), std::end(types), [&](auto& type) { return type.type == name; });
    if (found == std::end(types)) {
      fail(Kind::invalid, "[{}] '{}' may hold M, *, - and E or their names; got '{}'", config.where, field, name);
    }
    letters += found->letter;
  }
  return letters;
}

/** The gate first, then a norm over each group. */
class MambaMixer {
 public:
  MambaMixer(const Mamba2Shape& shape, Weights& weights, const std::string& name, float eps)
      : groups_(shape.groups),
        eps_(eps),
        layer(shape, weights, name),
        weight_(weights.take(name + ".norm.weight", {shape.inner()}, weights.dtype())),
        out_proj(weights, name + ".out_proj", shape.hidden, shape.inner(), shape.bias) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [y, gate] = layer(x, cache);
    auto grouped = mx::reshape(swiglu(gate, y), {y.shape(0), groups_, -1});
    return out_proj(weight_ * mx::flatten(rms_norm(grouped, eps_), 1, 2));
  }

 private:
  int groups_;
  float eps_;
  Mamba2Layer layer;
  mx::array weight_; // [inner]
  Linear out_proj;
};

/** Experts without gates beside a shared one, in a narrower space where
 * `moe_latent_size` says so. */
class ExpertsMixer {
 public:
  ExpertsMixer(const Config& config, Weights& weights, const std::string& name, bool bias)
      : count_(config.count("n_routed_experts")),
        gate_(weights.take(name + ".gate.weight", {count_, config.count("hidden_size")}, weights.dtype())),
        choose_(choose_by_biased_sigmoid(
            weights,
            name + ".gate.e_score_correction_bias",
            count_,
            DeepseekMoeArgs(config).selection)),
        experts_([&] {
          int dims = config.count("moe_latent_size", config.count("hidden_size"));
          auto stacked = name + ".switch_mlp";
          stack_experts(weights, name + ".experts", stacked, count_, {{"up_proj", "fc1"}, {"down_proj", "fc2"}});
          return SwitchMLP(weights, stacked, count_, dims, config.count("moe_intermediate_size"), relu_squared);
        }()) {
    int dims = config.count("hidden_size");
    if (config.has("moe_latent_size")) {
      int latent = config.count("moe_latent_size");
      to_latent_.emplace(weights, name + ".fc1_latent_proj", latent, dims, bias);
      from_latent_.emplace(weights, name + ".fc2_latent_proj", dims, latent, bias);
    }
    if (config.integer("n_shared_experts", 0) > 0) {
      int hidden = config.count("moe_shared_expert_intermediate_size");
      shared_.emplace(weights, name + ".shared_experts", dims, hidden, relu_squared, bias, MLPNames{});
    }
  }

  mx::array operator()(const mx::array& x) const {
    auto choice = choose_(mx::matmul(x, mx::transpose(gate_)));
    auto y = experts_(to_latent_ ? (*to_latent_)(x) : x, choice);
    if (from_latent_) {
      y = (*from_latent_)(y);
    }
    return shared_ ? y + (*shared_)(x) : y;
  }

 private:
  int count_;
  mx::array gate_; // [experts,hidden_size], never quantized
  SparseMoe::Choose choose_;
  SwitchMLP experts_;
  std::optional<Linear> to_latent_;
  std::optional<Linear> from_latent_;
  std::optional<MLP> shared_;
};

Mamba2Shape mamba_shape(const Config& config) {
  Mamba2Shape shape{
      .hidden = config.count("hidden_size"),
      .heads = config.count("mamba_num_heads"),
      .head_dim = config.count("mamba_head_dim"),
      .state_size = config.count("ssm_state_size"),
      .groups = config.count("n_groups"),
      .kernel = config.count("conv_kernel"),
      .bias = config.boolean("mamba_proj_bias", false),
      .conv_bias = config.boolean("use_conv_bias", true)};
  if (config.has("time_step_limit")) {
    std::tie(shape.least_dt, shape.most_dt) = time_step_limit(config);
  }
  return shape;
}

struct Layer {
  Decoder::Block mixer;
  CacheSpec cache;
};

Layer make_layer(char letter, const Config& config, const Sizes& sizes, Weights& weights, const std::string& name) {
  bool bias = config.boolean("mlp_bias", false);
  if (letter == 'M') {
    auto shape = mamba_shape(config);
    float eps = config.number("layer_norm_epsilon", 1e-5);
    return {MambaMixer(shape, weights, name, eps), Mamba2Layer::cache_spec(shape, weights.dtype())};
  }
  if (letter == '*') {
    bool attention_bias = config.boolean("attention_bias", false);
    Projections project(weights, name, sizes, attention_bias, attention_bias);
    return {SelfAttention(project, scaled_attention(sizes.head_dim, nullptr)), sizes.cache()};
  }
  Decoder::Map feed_forward = letter == 'E'
      ? Decoder::Map(ExpertsMixer(config, weights, name, bias))
      : MLP(weights, name, sizes.hidden_size, sizes.intermediate_size, relu_squared, bias, {});
  return {[=](const mx::array& x, Cache&) { return feed_forward(x); }, {}};
}

} // namespace

std::unique_ptr<Model> make_nemotron_h(const Config& given, Weights& weights) {
  auto letters = layer_letters(given);
  auto config = given;
  config.json["num_hidden_layers"] = int(letters.size());
  require_text(config, "mlp_hidden_act", "relu2");
  require_text(config, "mamba_hidden_act", "silu");
  require_off(config, "tie_word_embeddings");
  weights.ignore("mtp."); // they draft several tokens
  Sizes sizes(config);
  float eps = config.number("layer_norm_epsilon", 1e-5);
  auto model = std::make_unique<Decoder>(weights, "backbone.embeddings", sizes);
  for (size_t i = 0; i < letters.size(); ++i) {
    auto name = fmt::format("backbone.layers.{}", i);
    RMSNorm norm(weights, name + ".norm", sizes.hidden_size, eps);
    auto [mixer, cache] = make_layer(letters[i], config, sizes, weights, name + ".mixer");
    model->add([norm, mixer = mixer](const mx::array& x, Cache& c) { return x + mixer(norm(x), c); }, cache);
  }
  model->norm = RMSNorm(weights, "backbone.norm_f", sizes.hidden_size, eps);
  model->head = Linear(weights, "lm_head", sizes.vocab_size, sizes.hidden_size);
  return model;
}

} // namespace parallm
