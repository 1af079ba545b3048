// The text parts of Mistral Small 3.1, Pixtral (arXiv 2410.07073) and LLaVA (arXiv
// 2304.08485), which are Llama's or Mistral's; and Ministral 3 and Mistral 4, whose
// queries grow with their position; Mistral 4 is DeepSeek-V3's with softmax.
#include "base/error.h"
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"
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

using Grown = std::shared_ptr<std::optional<mx::array>>; // the step's

/** Sets the step's growth when its embeddings are looked up. */
Grown grow_queries(Decoder& model, const Config& config) {
  auto positions = config.object("rope_parameters");
  Growth growth{
      float(positions.number("llama_4_scaling_beta")), float(positions.count("original_max_position_embeddings"))};
  auto grown = std::make_shared<std::optional<mx::array>>();
  model.embedded = [=](const mx::array& x, Caches& caches) {
    *grown = mx::astype(growth(caches.positions()), x.dtype());
    return x;
  };
  return grown;
}

/** A layer's cache that multiplies the queries it gets. */
class GrowingCache : public Cache {
 public:
  GrowingCache(Cache& cache, const mx::array& by) : cache_(cache), by_(by) {}

  mx::array attend(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) override {
    return cache_.attend(q * by_, k, v, how);
  }
  mx::array recur(const std::vector<mx::array>& inputs, const Recurrence& f) override {
    return cache_.recur(inputs, f);
  }

 private:
  Cache& cache_;
  mx::array by_; // [T,1,1]
};

template <class Attend>
Decoder::Block growing(Attend attend, Grown grown) {
  return [attend = std::move(attend), grown = std::move(grown)](const mx::array& x, Cache& cache) {
    GrowingCache growing(cache, grown->value());
    return attend(x, growing);
  };
}

} // namespace

std::unique_ptr<Model> make_ministral3(const Config& config, Weights& weights) {
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  auto act = activation(config.text("hidden_act", "silu"));
  auto windows = layer_windows(config, sizes.num_hidden_layers);
  auto model = usual_decoder(with_defaults(config, {{"tie_word_embeddings", true}}), weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  auto grown = grow_queries(*model, config);
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    SelfAttention attend(
        Projections(weights, name + ".self_attn", sizes), scaled_attention(sizes.head_dim, rope, windows[i]));
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act);
    model->add(pre_norm_block(weights, name, dims, eps, growing(attend, grown), mlp), sizes.cache());
  }
  return model;
}

std::unique_ptr<Model> make_mistral4(const Config& given, Weights& weights) {
  auto config = given;
  require_text(config, "hidden_act", "silu");
  config.json["rope_scaling"] = given.object("rope_parameters").json; // for YaRN's part in the scores
  LatentArgs attention(config);
  int dims = attention.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  auto how = DeepseekMoeArgs(config).selection;
  auto choose = [how](const mx::array& logits) {
    return choose_by_score(mx::softmax(mx::astype(logits, mx::float32), -1, true), {}, how);
  };
  auto model = usual_decoder(config, weights, dims, eps);
  bool pairs = config.boolean("rope_interleave", true);
  auto* rope = model->keep(make_rope(config, attention.qk_rope_head_dim, {.theta = 100000, .traditional = pairs}));
  auto grown = grow_queries(*model, config);
  for (int i = 0; i < config.count("num_hidden_layers"); ++i) {
    auto name = layer_name(i);
    auto mlp = name + ".mlp";
    split_kv_b(weights, name + ".self_attn", attention, true);
    LatentAttention attend(weights, name + ".self_attn", attention, rope);
    auto feed_forward = [&]() -> Decoder::Map {
      if (!is_deepseek_moe_layer(config, i)) {
        return GatedMLP(weights, mlp, dims, config.count("intermediate_size"));
      }
      split_gate_up(weights, mlp + ".experts.gate_up_proj", mlp + ".switch_mlp", false);
      weights.rename(mlp + ".experts.down_proj", mlp + ".switch_mlp.down_proj.weight");
      return DeepseekMoe(weights, mlp, DeepseekMoeArgs(config), choose);
    }();
    model->add(pre_norm_block(weights, name, dims, eps, growing(attend, grown), feed_forward), attention.cache());
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
  if (type == "mistral4") {
    return make_mistral4(text, weights);
  }
  if (type != "llama" && type != "mistral") {
    fail(Kind::invalid, "[{}] 'model_type' must be llama, mistral, ministral3 or mistral4; got '{}'", text.where, type);
  }
  return make_llama(text, weights);
}

} // namespace parallm
