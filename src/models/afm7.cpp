// Apple's on-device foundation model of 2025 (arXiv 2507.13575): keys and values
// rounded to 8 bits, and last layers that attend to those of the last one with any.
#include "base/error.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_kv.h"
#include "models/step_rotation.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

constexpr float head_norm_eps = 1e-5f;

/** x rounded to the nearest of 256 multiples of a learned step. */
class Rounding {
 public:
  Rounding(Weights& weights, const std::string& name) : step_(weights.take(name, {}, mx::float32)) {}

  mx::array operator()(const mx::array& x) const {
    auto codes = mx::round(mx::astype(x, mx::float32) / step_);
    return mx::astype(mx::clip(codes, mx::array(-128.0f), mx::array(127.0f)) * step_, x.dtype());
  }

 private:
  mx::array step_;
};

Config common_names(const Config& given) {
  auto config = with_names(
      given,
      {{"hidden_size", "hidden_dim"},
       {"num_hidden_layers", "num_layers"},
       {"num_attention_heads", "num_heads"},
       {"num_key_value_heads", "num_kv_heads"}});
  int hidden = int(config.count("hidden_size") * config.number("hidden_dim_scale_factor", 3.25));
  return with_defaults(config, {{"intermediate_size", hidden}});
}

} // namespace

std::unique_ptr<Model> make_afm7(const Config& given, Weights& weights) {
  auto config = common_names(given);
  Sizes sizes(config);
  int dims = sizes.hidden_size, first_reuse = sizes.num_hidden_layers - config.integer("num_kv_reuse_layers");
  if (first_reuse < 1) {
    fail(
        Kind::invalid,
        "[{}] 'num_kv_reuse_layers' must be less than 'num_layers', {}; got {}",
        config.where,
        sizes.num_hidden_layers,
        sizes.num_hidden_layers - first_reuse);
  }
  float eps = config.number("rms_norm_eps", 1e-5);
  auto model = std::make_unique<Decoder>(weights, "model.embedding", sizes);
  // Keys are rotated before their norm and their rounding, so that the cache can't do it.
  auto rotate = std::make_shared<StepRotation>(plain_rope(sizes.head_dim, config.number("rope_theta", 50000), true));
  model->embedded = [rotate](const mx::array& x, Caches& caches) {
    rotate->begin(caches.positions());
    return x;
  };
  auto how = scaled_attention(sizes.head_dim, nullptr);
  auto kv = std::make_shared<SharedKV>(); // the last layer's that has any
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    bool reuses = i >= first_reuse;
    auto name = reuses ? fmt::format("model.kv_reuse_layers.{}", i - first_reuse) : layer_name(i);
    auto self_attn = name + ".self_attn";
    RMSNorm q_norm(weights, self_attn + ".q_norm", sizes.head_dim, head_norm_eps);
    Decoder::Block attend;
    if (reuses) {
      Linear q_proj(weights, self_attn + ".q_proj", dims, dims), out_proj(weights, self_attn + ".out_proj", dims, dims);
      mx::Shape heads{-1, sizes.num_attention_heads, sizes.head_dim};
      attend = [=](const mx::array& x, Cache&) {
        return out_proj(kv->attend(q_norm((*rotate)(mx::reshape(q_proj(x), heads))), how));
      };
    } else {
      FusedProjections project(weights, self_attn, sizes, false, false, {.o = "out_proj"});
      RMSNorm k_norm(weights, self_attn + ".k_norm", sizes.head_dim, head_norm_eps);
      Rounding round_key(weights, self_attn + ".quant_key_scale");
      Rounding round_value(weights, self_attn + ".quant_value_scale");
      attend = [=](const mx::array& x, Cache& cache) {
        auto [q, k, v] = project(x);
        auto key = round_key(k_norm((*rotate)(k)));
        return project.out(kv->attend(q_norm((*rotate)(q)), key, round_value(v), cache, how));
      };
    }
    GatedMLP mlp(weights, name + ".mlp", dims, sizes.intermediate_size);
    model->add(pre_norm_block(weights, name, dims, eps, attend, mlp), reuses ? CacheSpec{} : sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.output_norm", dims, eps);
  return model;
}

} // namespace parallm
