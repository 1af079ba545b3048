#include "models/decoder.h"

#include "base/error.h"
#include "models/head.h"
#include "nn/norm.h"

namespace parallm {

namespace {

class Decoder : public Model {
 public:
  explicit Decoder(DecoderParts parts) : parts_(std::move(parts)) {}

  mx::array hidden(const mx::array& ids, Caches& caches) override {
    auto h = scaled(parts_.embedding(ids), parts_.embedding_scale);
    for (size_t i = 0; i < parts_.layers.size(); ++i) {
      h = parts_.layers[i].run(h, caches.layer(i));
    }
    return parts_.norm(h);
  }

  mx::array logits(const mx::array& hidden) override {
    auto out = parts_.head ? (*parts_.head)(hidden) : parts_.embedding.as_linear(hidden);
    return scaled(out, parts_.logits_scale);
  }

  std::vector<CacheSpec> cache_specs() const override {
    std::vector<CacheSpec> specs;
    for (auto& layer : parts_.layers) {
      specs.push_back(layer.cache);
    }
    return specs;
  }

  int vocabulary() const override {
    return parts_.vocabulary;
  }

  int own_kv_past() const override {
    return parts_.own_kv_past;
  }

 private:
  static mx::array scaled(const mx::array& x, float scale) {
    return scale == 1 ? x : x * mx::array(scale, x.dtype());
  }

  DecoderParts parts_;
};

} // namespace

std::unique_ptr<Model> make_decoder(DecoderParts parts) {
  return std::make_unique<Decoder>(std::move(parts));
}

Attend pre_norm_block(
    Weights& weights,
    const std::string& name,
    int dims,
    float eps,
    Attend attend,
    Map feed_forward,
    float residual_scale) {
  RMSNorm before(weights, name + ".input_layernorm", dims, eps);
  RMSNorm between(weights, name + ".post_attention_layernorm", dims, eps);
  const auto scaled = [residual_scale](const mx::array& x) {
    return residual_scale == 1 ? x : x * mx::array(residual_scale, x.dtype());
  };
  return [=](const mx::array& x, Cache& cache) {
    auto h = x + scaled(attend(before(x), cache));
    return h + scaled(feed_forward(between(h)));
  };
}

DecoderParts usual_parts(const Config& config, Weights& weights, int dims, float eps) {
  int vocabulary = config.count("vocab_size");
  return {
      .vocabulary = vocabulary,
      .embedding = Embedding(weights, "model.embed_tokens", vocabulary, dims),
      .layers = {},
      .norm = RMSNorm(weights, "model.norm", dims, eps),
      .head = untied_head(config, weights, vocabulary, dims)};
}

std::vector<int> layer_windows(const Config& config, int layers) {
  auto types = config.texts("layer_types");
  if (int(types.size()) != layers) {
    fail(Kind::invalid, "[{}] 'layer_types' must name {} layers; got {}", config.where, layers, types.size());
  }
  std::vector<int> windows;
  for (auto& type : types) {
    if (type != "sliding_attention" && type != "full_attention") {
      fail(
          Kind::invalid,
          "[{}] 'layer_types' may hold full_attention and sliding_attention; got '{}'",
          config.where,
          type);
    }
    windows.push_back(type == "sliding_attention" ? config.count("sliding_window") : 0);
  }
  return windows;
}

Config with_default(Config config, const char* field, double value) {
  if (!config.has(field)) {
    config.json[field] = value;
  }
  return config;
}

void require_text(const Config& config, const char* field, const char* wanted) {
  if (auto got = config.text(field, wanted); got != wanted) {
    fail(Kind::invalid, "[{}] '{}' must be {}; got '{}'", config.where, field, wanted, got);
  }
}

} // namespace parallm
