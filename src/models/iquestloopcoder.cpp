// IQuest-Coder Loop (IQuest Research): Llama's layers, run twice; the second time a
// gate a head mixes attention to the first time's keys with a window on its own.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_kv.h"
#include "models/step_rotation.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

/** How much of the first time's keys, by the rotated query: [T,H,1]. */
class LoopGate {
 public:
  LoopGate(Weights& weights, const std::string& name, const Sizes& sizes)
      : weight_(weights.take(name + ".weight", {sizes.num_attention_heads, sizes.head_dim}, weights.dtype())),
        bias_(weights.take(name + ".bias", {sizes.num_attention_heads}, weights.dtype())) {}

  mx::array operator()(const mx::array& q) const {
    return mx::sigmoid(mx::sum(q * weight_, -1, true) + mx::expand_dims(bias_, 1));
  }

 private:
  mx::array weight_;
  mx::array bias_;
};

} // namespace

std::unique_ptr<Model> make_iquestloopcoder(const Config& config, Weights& weights) {
  if (int loops = config.count("loop_num", 2); loops != 2) {
    fail(Kind::invalid, "[{}] 'loop_num' must be 2; got {}", config.where, loops);
  }
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-6);
  bool attention_bias = config.boolean("attention_bias", false), mlp_bias = config.boolean("mlp_bias", false);
  auto act = activation(config.text("hidden_act", "silu"));
  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.theta = 500000}));
  auto rotation = std::make_shared<StepRotation>(*rope);
  model->embedded = [rotation](const mx::array& x, Caches& caches) {
    rotation->begin(caches.positions());
    return x;
  };
  auto how = scaled_attention(sizes.head_dim, rope), windowed = how;
  windowed.window = config.count("loop_window_size", 64);

  std::vector<Decoder::Block> second;
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = layer_name(i);
    Projections project(weights, name + ".self_attn", sizes, attention_bias, attention_bias);
    RMSNorm before(weights, name + ".input_layernorm", dims, eps);
    RMSNorm between(weights, name + ".post_attention_layernorm", dims, eps);
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size, act, mlp_bias);
    LoopGate gate(weights, fmt::format("model.gate_projections.{}", i), sizes);
    auto kv = std::make_shared<SharedKV>(); // from the first time to the second
    model->add(
        [=](const mx::array& x, Cache& cache) {
          auto [q, k, v] = project(before(x));
          auto h = x + project.out(kv->attend(q, k, v, cache, how));
          return h + mlp(between(h));
        },
        sizes.cache());
    second.push_back([=](const mx::array& x, Cache& cache) {
      auto [q, k, v] = project(before(x));
      auto share = gate((*rotation)(q));
      auto far = kv->attend(q, how), near = cache.attend(q, k, v, windowed);
      auto mixed = share * far + (mx::array(1, x.dtype()) - share) * near;
      auto h = x + project.out(mixed);
      return h + mlp(between(h));
    });
  }
  for (auto& block : second) {
    model->add(block, sizes.cache());
  }
  return model;
}

} // namespace parallm
