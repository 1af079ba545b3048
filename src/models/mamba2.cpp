// Mamba-2 (arXiv 2405.21060): state space layers alone, no attention.
#include "base/error.h"
#include "models/config.h"
#include "models/mamba2_layer.h"
#include "models/model.h"
#include "nn/activation.h"
#include "nn/embedding.h"
#include "nn/norm.h"

namespace parallm {

namespace {

/** config.json's fields by their names there; defaults are mlx-lm's
 * (models/mamba2.py). */
struct Mamba2Args {
  explicit Mamba2Args(const Config& config);

  int num_hidden_layers;
  int vocab_size;
  float layer_norm_epsilon;
  bool use_bias;
  bool tie_word_embeddings;
  Mamba2Shape shape;
};

Mamba2Args::Mamba2Args(const Config& config)
    : num_hidden_layers(config.count("num_hidden_layers")),
      vocab_size(config.count("vocab_size")),
      layer_norm_epsilon(config.number("layer_norm_epsilon", 1e-5)),
      use_bias(config.boolean("use_bias", false)),
      tie_word_embeddings(config.boolean("tie_word_embeddings", false)),
      shape{
          .hidden = config.count("hidden_size"),
          .heads = config.count("num_heads"),
          .head_dim = config.count("head_dim"),
          .state_size = config.has("ssm_state_size") ? config.count("ssm_state_size") : config.count("state_size"),
          .groups = config.count("n_groups"),
          .kernel = config.count("conv_kernel"),
          .bias = use_bias,
          .conv_bias = config.boolean("use_conv_bias", true)} {
  auto act = config.text("hidden_act", "silu");
  if (act != "silu") {
    fail(Kind::invalid, "[mamba2] 'hidden_act' must be silu; got '{}'", act);
  }
  if (config.has("time_step_limit")) {
    std::tie(shape.least_dt, shape.most_dt) = time_step_limit(config);
  }
}

/** norm(silu(gate) * y), projected. */
class Mixer {
 public:
  Mixer(const Mamba2Args& args, Weights& weights, const std::string& name)
      : layer(args.shape, weights, name),
        norm(weights, name + ".norm", args.shape.inner(), args.layer_norm_epsilon),
        out_proj(weights, name + ".out_proj", args.shape.hidden, args.shape.inner(), args.use_bias) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [y, gate] = layer(x, cache);
    return out_proj(norm(swiglu(gate, y)));
  }

 private:
  Mamba2Layer layer;
  RMSNorm norm;
  Linear out_proj;
};

class Block {
 public:
  Block(const Mamba2Args& args, Weights& weights, const std::string& name)
      : mixer(args, weights, name + ".mixer"),
        norm(weights, name + ".norm", args.shape.hidden, args.layer_norm_epsilon) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    return x + mixer(norm(x), cache);
  }

 private:
  Mixer mixer;
  RMSNorm norm;
};

class Mamba2 : public Model {
 public:
  Mamba2(const Mamba2Args& args, Weights& weights)
      : args_(args),
        dtype_(weights.dtype()),
        embeddings(weights, "backbone.embeddings", args.vocab_size, args.shape.hidden),
        norm_f(weights, "backbone.norm_f", args.shape.hidden, args.layer_norm_epsilon) {
    for (int i = 0; i < args.num_hidden_layers; ++i) {
      layers.emplace_back(args, weights, fmt::format("backbone.layers.{}", i));
    }
    if (args.tie_word_embeddings) {
      weights.ignore("lm_head.");
    } else {
      lm_head.emplace(weights, "lm_head", args.vocab_size, args.shape.hidden);
    }
  }

  mx::array hidden(const mx::array& ids, Caches& caches) override {
    auto h = embeddings(ids);
    for (size_t i = 0; i < layers.size(); ++i) {
      h = layers[i](h, caches.layer(i));
    }
    return norm_f(h);
  }

  mx::array logits(const mx::array& hidden) override {
    return lm_head ? (*lm_head)(hidden) : embeddings.as_linear(hidden);
  }

  std::vector<CacheSpec> cache_specs() const override {
    return {layers.size(), Mamba2Layer::cache_spec(args_.shape, dtype_)};
  }

  int vocabulary() const override {
    return args_.vocab_size;
  }

 private:
  Mamba2Args args_;
  mx::Dtype dtype_;
  Embedding embeddings;
  std::vector<Block> layers;
  RMSNorm norm_f;
  std::optional<Linear> lm_head;
};

} // namespace

std::unique_ptr<Model> make_mamba2(const Config& config, Weights& weights) {
  weights.rename("backbone.embedding.", "backbone.embeddings.");
  return std::make_unique<Mamba2>(Mamba2Args(config), weights);
}

} // namespace parallm
