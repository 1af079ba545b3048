// Kimi K3 (Moonshot AI): Kimi Linear's two kinds of attention, with a gate on the
// latent one, experts in a narrower space, activations that level off (SiTU), and
// attention over depth in place of a sum of all layers (arXiv 2603.15031).
#include "base/error.h"
#include "models/kimi_delta_attention.h"
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/shared_experts.h"
#include "models/text_part.h"

#include <algorithm>
#include <cmath>

namespace parallm {

namespace {

/** beta * tanh(gate / beta) * sigmoid(gate) * up, a SwiGLU that stays below beta; `linear_beta` bounds up the same way.
 */
struct Situ {
  explicit Situ(const Config& config) : beta(config.number("activation_situ_beta", 1)) {
    if (config.has("activation_situ_linear_beta")) {
      linear_beta = float(config.number("activation_situ_linear_beta"));
    }
  }

  mx::array operator()(const mx::array& gate, const mx::array& up) const {
    auto g = mx::astype(gate, mx::float32), u = mx::astype(up, mx::float32);
    u = linear_beta ? softcapped(u, *linear_beta) : u;
    return mx::astype(softcapped(g, beta) * mx::sigmoid(g) * u, up.dtype());
  }

  float beta;
  std::optional<float> linear_beta;
};

/** DeepSeek-V3's experts, the routed ones of `routed_expert_hidden_size` inputs where that is set. */
class LatentMoe {
 public:
  LatentMoe(const Config& config, Weights& weights, const std::string& name, Situ act)
      : LatentMoe(config, DeepseekMoeArgs(config), weights, name, act) {}

  mx::array operator()(const mx::array& x) const {
    auto y = switch_mlp(routed_expert_down_proj ? (*routed_expert_down_proj)(x) : x, choose_(gate(x)));
    y = routed_expert_norm ? (*routed_expert_norm)(y) : y;
    y = routed_expert_up_proj ? (*routed_expert_up_proj)(y) : y;
    return shared_experts ? y + (*shared_experts)(x) : y;
  }

 private:
  LatentMoe(
      const Config& config,
      const DeepseekMoeArgs& args,
      Weights& weights,
      const std::string& name,
      const Situ& act)
      : choose_(choose_by_biased_sigmoid(
            weights,
            name + ".e_score_correction_bias",
            args.n_routed_experts,
            args.selection)),
        gate(weights, name + ".gate", args.n_routed_experts, args.hidden_size),
        switch_mlp(
            weights,
            name + ".switch_mlp",
            args.n_routed_experts,
            config.count("routed_expert_hidden_size", args.hidden_size),
            args.moe_intermediate_size,
            act) {
    int dims = args.hidden_size;
    if (config.has("routed_expert_hidden_size")) {
      int latent = config.count("routed_expert_hidden_size");
      routed_expert_down_proj.emplace(weights, name + ".routed_expert_down_proj", latent, dims);
      routed_expert_up_proj.emplace(weights, name + ".routed_expert_up_proj", dims, latent);
      if (config.boolean("latent_moe_use_norm", false)) {
        routed_expert_norm.emplace(weights, name + ".routed_expert_norm", latent, config.number("rms_norm_eps", 1e-5));
      }
    }
    if (args.n_shared_experts > 0) {
      int hidden = args.moe_intermediate_size * args.n_shared_experts;
      shared_experts.emplace(weights, name + ".shared_experts", dims, hidden, act);
    }
  }

  SparseMoe::Choose choose_;
  Linear gate;
  SwitchGLU switch_mlp;
  std::optional<Linear> routed_expert_down_proj;
  std::optional<RMSNorm> routed_expert_norm;
  std::optional<Linear> routed_expert_up_proj;
  std::optional<GluMLP> shared_experts;
};

/** The sum of each block of layers, which later layers attend to. The layers hold it together; it lasts for a step. */
class BlockSums {
 public:
  explicit BlockSums(float eps) : eps_(eps) {}

  void clear() {
    sums_.reset();
    inverse_rms_.reset();
  }

  void append(const mx::array& sum) {
    auto one = mx::expand_dims(sum, 0), inverse = inverse_rms(mx::astype(one, mx::float32));
    inverse_rms_ = inverse_rms_ ? mx::concatenate({*inverse_rms_, inverse}, 0) : inverse;
    sums_ = sums_ ? mx::concatenate({*sums_, one}, 0) : one;
  }

  /** The sums and `current` [T,D], that of the block not finished, weighed by the softmax of their norms' products with
   * `query` [D]. */
  mx::array mix(const mx::array& current, const mx::array& query) const {
    if (!sums_) {
      return current;
    }
    auto sums = mx::astype(*sums_, mx::float32), last = mx::astype(mx::expand_dims(current, 0), mx::float32);
    const auto score = [&](const mx::array& x) { return mx::sum(x * query, -1); };
    auto scores = mx::concatenate({score(sums) * *inverse_rms_, score(last) * inverse_rms(last)}, 0); // [K+1,T]
    auto weights = mx::split(mx::expand_dims(mx::softmax(scores, 0, true), 2), mx::Shape{sums.shape(0)}, 0);
    return mx::astype(mx::sum(weights[0] * sums, 0) + mx::squeeze(weights[1] * last, 0), current.dtype());
  }

 private:
  mx::array inverse_rms(const mx::array& x) const {
    return mx::rsqrt(mx::mean(mx::square(x), -1) + mx::array(eps_));
  }

  float eps_;
  std::optional<mx::array> sums_; // [K,T,D]
  std::optional<mx::array> inverse_rms_; // [K,T]
};

/** The learned query of one place, with the weight of the norm on what it meets. */
mx::array take_query(Weights& weights, const std::string& name, int dims) {
  auto norm = weights.take(name + "_norm.weight", {dims}, mx::float32);
  return norm * mx::flatten(weights.take(name + "_proj.weight", {1, dims}, mx::float32));
}

/** Layers' parts to one, by rows. */
void join(Weights& weights, const std::vector<std::string>& layers, const std::string& to) {
  for (auto* part : {".weight", ".scales", ".biases"}) {
    std::vector<mx::array> all;
    for (auto& layer : layers) {
      if (auto array = weights.pull(layer + part)) {
        all.push_back(*array);
      }
    }
    if (!all.empty()) {
      weights.put(to + part, mx::concatenate(all, 0));
    }
  }
}

/** Hugging Face's names and shapes to mlx-lm's. */
void to_ours(Weights& weights, const std::string& layer, int heads) {
  auto moe = layer + ".block_sparse_moe.", part = layer + ".self_attn";
  weights.rename(moe + "gate.e_score_correction_bias", layer + ".mlp.e_score_correction_bias");
  weights.rename(moe, layer + ".mlp.");
  for (std::string place : {".self_attention_res", ".mlp_res"}) {
    weights.rename(layer + place + ".proj_weight", layer + place + "_proj.weight");
    weights.rename(layer + place + ".norm_weight", layer + place + "_norm.weight");
  }
  join(weights, {part + ".q_conv1d", part + ".k_conv1d", part + ".v_conv1d"}, part + ".qkv_conv.conv");
  if (auto stored = weights.pull(part + ".dt_bias")) {
    weights.put(part + ".dt_bias", mx::flatten(*stored));
  }
  if (auto stored = weights.pull(part + ".A_log")) { // delta attention: q_proj isn't the latent one's
    weights.put(part + ".A_log", mx::slice(mx::flatten(*stored), {0}, {heads}));
    join(weights, {part + ".q_proj", part + ".k_proj", part + ".v_proj"}, part + ".qkv_proj");
  }
}

KimiDeltaArgs delta_args(const Config& config, float eps) {
  auto linear = config.object("linear_attn_config");
  KimiDeltaArgs args{
      .hidden = config.count("hidden_size"),
      .heads = linear.count("num_heads"),
      .head_dim = linear.count("head_dim"),
      .kernel = linear.count("short_conv_kernel_size"),
      .eps = eps,
      .narrow_gate = !linear.boolean("use_full_rank_gate", false),
      .fused = true,
      .flat = true};
  if (linear.has("gate_lower_bound")) {
    args.least_log_decay = float(linear.number("gate_lower_bound"));
  }
  return args;
}

Decoder::Block latent_attention(const Config& config, Weights& weights, const std::string& name) {
  LatentArgs args(config);
  split_kv_b(weights, name, args, true);
  LatentAttention attention(weights, name, args, nullptr);
  if (!config.boolean("mla_use_output_gate", false)) {
    return attention;
  }
  Linear gate(weights, name + ".g_proj", args.num_attention_heads * args.v_head_dim, args.hidden_size);
  return [=](const mx::array& x, Cache& cache) {
    auto y = attention.attend(x, cache);
    return attention.out(y * mx::reshape(mx::sigmoid(gate(x)), y.shape()));
  };
}

/** Its input and output are the sum of its block so far. */
Decoder::Block attending_block(
    Weights& weights,
    const std::string& name,
    int dims,
    float eps,
    const Decoder::Block& attend,
    const Decoder::Map& feed_forward,
    const std::shared_ptr<BlockSums>& sums,
    bool starts) {
  RMSNorm before(weights, name + ".input_layernorm", dims, eps);
  RMSNorm between(weights, name + ".post_attention_layernorm", dims, eps);
  auto attention_query = take_query(weights, name + ".self_attention_res", dims);
  auto mlp_query = take_query(weights, name + ".mlp_res", dims);
  return [=](const mx::array& x, Cache& cache) {
    auto y = before(sums->mix(x, attention_query));
    if (starts) {
      sums->append(x);
    }
    y = attend(y, cache);
    auto h = starts ? y : x + y;
    return h + feed_forward(between(sums->mix(h, mlp_query)));
  };
}

} // namespace

std::unique_ptr<Model> make_kimi_k3(const Config& outer, Weights& weights) {
  auto others = {"vision_tower", "vision_model", "multi_modal_projector", "mm_projector"};
  auto config = kimi_with_deepseek_names(text_part(outer, weights, {others.begin(), others.end()}));
  require_text(config, "hidden_act", "situ");
  require_text(config, "moe_router_activation_func", "sigmoid");
  if (!config.boolean("mla_use_nope", true)) {
    fail(Kind::invalid, "[{}] 'mla_use_nope' must be true; got false", config.where);
  }
  weights.ignore("model.mtp");
  weights.ignore("mtp");
  int dims = config.count("hidden_size"), layers = config.count("num_hidden_layers");
  ignore_layers_from(weights, layers, config.integer("num_nextn_predict_layers", 1));
  float eps = config.number("rms_norm_eps", 1e-5);
  auto delta = delta_args(config, eps);
  auto linear = config.object("linear_attn_config").integers("kda_layers"); // counted from 1
  const int block_size = config.has("attn_res_block_size") ? config.count("attn_res_block_size") : 0;
  Situ act(config);
  for (int i = 0; i < layers && config.has("num_experts"); ++i) { // before renaming: most tensors are experts'
    stack_experts(
        weights,
        layer_name(i) + ".block_sparse_moe.experts",
        layer_name(i) + ".mlp.switch_mlp",
        config.count("num_experts"),
        numbered_projections);
  }

  auto model = usual_decoder(config, weights, dims, eps);
  auto sums = std::make_shared<BlockSums>(eps);
  for (int i = 0; i < layers; ++i) {
    auto name = layer_name(i), part = name + ".self_attn";
    to_ours(weights, name, delta.heads);
    bool is_linear = std::find(linear.begin(), linear.end(), i + 1) != linear.end();
    auto attend =
        is_linear ? Decoder::Block(KimiDeltaAttention(delta, weights, part)) : latent_attention(config, weights, part);
    auto feed_forward = is_deepseek_moe_layer(config, i)
        ? Decoder::Map(LatentMoe(config, weights, name + ".mlp", act))
        : GluMLP(weights, name + ".mlp", dims, config.count("intermediate_size"), act);
    model->add(
        block_size > 0 ? attending_block(weights, name, dims, eps, attend, feed_forward, sums, i % block_size == 0)
                       : pre_norm_block(weights, name, dims, eps, attend, feed_forward),
        is_linear ? KimiDeltaAttention::cache_spec(delta, weights.dtype()) : LatentArgs(config).cache());
  }
  if (block_size > 0) {
    weights.rename("model.output_attn_res.proj_weight", "model.output_attn_res_proj.weight");
    weights.rename("model.output_attn_res.norm_weight", "model.output_attn_res_norm.weight");
    auto query = take_query(weights, "model.output_attn_res", dims);
    model->embedded = [sums](const mx::array& x, Caches&) {
      sums->clear(); // of a step that failed
      return x;
    };
    model->norm = [sums, query, norm = model->norm](const mx::array& x) {
      auto y = norm(sums->mix(x, query));
      sums->clear(); // they are large
      return y;
    };
  }
  return model;
}

} // namespace parallm
