// The text parts of Mistral Small 3.1, Pixtral (arXiv 2410.07073) and LLaVA (arXiv
// 2304.08485), which are Llama's or Mistral's; and Ministral 3, whose queries
// grow with their position.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/text_part.h"
#include "nn/mlp.h"

namespace parallm {

std::unique_ptr<Model> make_llama(const Config& config, Weights& weights); // llama.cpp

namespace {

/** 1 + beta * log(1 + floor(position / length)) (Llama 4's temperature): [T,1,1]. */
struct Growth {
  float beta;
  float length;

  mx::array operator()(const mx::array& positions) const {
    auto lengths = mx::floor(mx::astype(positions, mx::float32) / mx::array(length));
    return mx::reshape(mx::array(1.0f) + mx::array(beta) * mx::log1p(lengths), {-1, 1, 1});
  }
};

} // namespace

std::unique_ptr<Model> make_ministral3(const Config& config, Weights& weights) {
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  auto act = activation(config.text("hidden_act", "silu"));
  auto windows = layer_windows(config, sizes.num_hidden_layers);
  auto positions = config.object("rope_parameters");
  Growth growth{
      float(positions.number("llama_4_scaling_beta")), float(positions.count("original_max_position_embeddings"))};

  auto model = usual_decoder(with_defaults(config, {{"tie_word_embeddings", true}}), weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  auto grown = std::make_shared<std::optional<mx::array>>(); // the step's
  model->embedded = [=](const mx::array& x, Caches& caches) {
    *grown = mx::astype(growth(caches.positions()), x.dtype());
    return x;
  };
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    Projections project(weights, name + ".self_attn", sizes);
    auto how = scaled_attention(sizes.head_dim, rope, windows[i]);
    auto attend = [=](const mx::array& x, Cache& cache) {
      auto [q, k, v] = project(x);
      return project.out(cache.attend(q * grown->value(), k, v, how));
    };
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act);
    model->add(pre_norm_block(weights, name, dims, eps, attend, mlp), sizes.cache());
  }
  return model;
}

/** Also llava and pixtral. */
std::unique_ptr<Model> make_mistral3(const Config& config, Weights& weights) {
  auto text = text_part(
      config,
      weights,
      {"vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."});
  text = with_defaults(text, {{"model_type", "llama"}, {"tie_word_embeddings", false}, {"num_attention_heads", 32}});
  auto type = text.text("model_type");
  if (type == "ministral3") {
    return make_ministral3(text, weights);
  }
  if (type != "llama" && type != "mistral") {
    fail(Kind::invalid, "[{}] 'model_type' must be llama, mistral or ministral3; got '{}'", text.where, type);
  }
  return make_llama(text, weights);
}

} // namespace parallm
