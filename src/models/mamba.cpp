// Mamba (arXiv 2312.00752): selective state spaces alone, no attention; and
// Falcon Mamba (arXiv 2410.05355), which norms the steps' parameters.
#include "base/error.h"
#include "models/config.h"
#include "models/mamba_layer.h"
#include "models/model.h"
#include "nn/embedding.h"
#include "nn/norm.h"

namespace parallm {

namespace {

/** A field that the first Mamba repositories call by another name. */
int count_of(const Config& config, const char* name, std::initializer_list<const char*> olds) {
  for (auto* old : olds) {
    if (!config.has(name) && config.has(old)) {
      return config.count(old);
    }
  }
  return config.count(name);
}

/** config.json's fields by their names there; defaults are mlx-lm's
 * (models/mamba.py). */
struct MambaArgs {
  explicit MambaArgs(const Config& config);

  int num_hidden_layers;
  int vocab_size;
  float layer_norm_epsilon;
  bool use_bcdt_rms;
  float mixer_rms_eps;
  bool tie_word_embeddings;
  MambaShape shape;
};

MambaArgs::MambaArgs(const Config& config)
    : num_hidden_layers(count_of(config, "num_hidden_layers", {"n_layer", "n_layers"})),
      vocab_size(config.count("vocab_size")),
      layer_norm_epsilon(config.number("layer_norm_epsilon", 1e-5)),
      use_bcdt_rms(config.text("model_type") == "falcon_mamba" || config.boolean("use_bcdt_rms", false)),
      mixer_rms_eps(config.number("mixer_rms_eps", 1e-6)),
      tie_word_embeddings(config.boolean("tie_word_embeddings", true)) {
  shape.hidden = count_of(config, "hidden_size", {"d_model"});
  shape.inner = count_of(config, "intermediate_size", {"d_inner"});
  shape.state_size = count_of(config, "state_size", {"d_state"});
  shape.kernel = count_of(config, "conv_kernel", {"d_conv"});
  shape.rank = time_step_rank(config, "time_step_rank", shape.hidden);
  shape.bias = config.boolean("use_bias", config.boolean("bias", false));
  shape.conv_bias = config.boolean("use_conv_bias", config.boolean("conv_bias", true));
  auto act = config.text("hidden_act", "silu");
  if (act != "silu") {
    fail(Kind::invalid, "[mamba] 'hidden_act' must be silu; got '{}'", act);
  }
}

MambaLayer::Norms norms(const MambaArgs& args) {
  if (!args.use_bcdt_rms) {
    return {};
  }
  auto norm = [eps = args.mixer_rms_eps](const mx::array& x) { return rms_norm(x, eps); };
  return {norm, norm, norm};
}

class Block {
 public:
  Block(const MambaArgs& args, Weights& weights, const std::string& name)
      : mixer(args.shape, weights, name + ".mixer", norms(args)),
        norm(weights, name + ".norm", args.shape.hidden, args.layer_norm_epsilon) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    return x + mixer(norm(x), cache);
  }

 private:
  MambaLayer mixer;
  RMSNorm norm;
};

class Mamba : public Model {
 public:
  Mamba(const MambaArgs& args, Weights& weights)
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
    return {layers.size(), MambaLayer::cache_spec(args_.shape, dtype_)};
  }

  int vocabulary() const override {
    return args_.vocab_size;
  }

 private:
  MambaArgs args_;
  mx::Dtype dtype_;
  Embedding embeddings;
  std::vector<Block> layers;
  RMSNorm norm_f;
  std::optional<Linear> lm_head;
};

} // namespace

std::unique_ptr<Model> make_mamba(const Config& config, Weights& weights) {
  weights.rename("backbone.embedding.", "backbone.embeddings.");
  return std::make_unique<Mamba>(MambaArgs(config), weights);
}

} // namespace parallm
