// Muse Spark (Meta): Muse Glimmer's attention with a norm on its output, experts in
// a narrower space with a norm on what each says, and a stream in float32 that each
// half of a block fades into by fixed gates.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/moe.h"

namespace parallm {

namespace {

const std::string root = "model.language_model.";

/** stream * alpha + branch * beta, both [dims], in float32. */
struct ResidualGate {
  ResidualGate(Weights& weights, const std::string& name, int dims)
      : alpha(weights.take(name + "_alpha", {dims}, mx::float32)),
        beta(weights.take(name + "_beta", {dims}, mx::float32)) {}

  mx::array operator()(const mx::array& stream, const mx::array& branch) const {
    return alpha * stream + beta * mx::astype(branch, mx::float32);
  }

  mx::array alpha;
  mx::array beta;
};

/** RMS norm of x * weight instead of the other way round. */
class InputScaleNorm {
 public:
  InputScaleNorm(Weights& weights, const std::string& name, int dims, float eps)
      : weight_(weights.take(name + ".weight", {dims}, weights.dtype())), eps_(eps) {}

  mx::array operator()(const mx::array& x) const {
    return rms_norm(weight_ * x, eps_);
  }

 private:
  mx::array weight_; // [dims]
  float eps_;
};

/** The router sees a token as it is, the experts in a narrower space. */
class NarrowMoe {
 public:
  NarrowMoe(const Config& config, Weights& weights, const std::string& name)
      : NarrowMoe(
            config,
            weights,
            name,
            config.count("num_local_experts"),
            config.count("hidden_size"),
            config.count("moe_hidden_size"),
            config.count("moe_intermediate_size")) {}

  mx::array operator()(const mx::array& x) const {
    auto logits = mx::matmul(mx::astype(x, mx::float32), mx::transpose(gate_));
    auto choice = choose_by_score(mx::sigmoid(logits * mx::array(multiplier_)), bias_, selection_);
    Routing routing(choice.experts, gate_.shape(0));
    auto rows = routing.gather(pre_expert_norm(pre_expert_proj(x)));
    auto h = swiglu(gate_proj(rows, routing.experts()), up_proj(rows, routing.experts()));
    auto y = post_expert_norm(down_proj(h, routing.experts()));
    return post_expert_proj(routing.weigh(y, choice.weights));
  }

 private:
  NarrowMoe(
      const Config& config,
      Weights& weights,
      const std::string& name,
      int experts,
      int dims,
      int narrow,
      int hidden)
      : selection_{.choices = config.count("num_experts_per_tok"), .scale = float(config.number("routed_scaling_factor", 1))},
        multiplier_(config.number("output_multiplier")),
        gate_(weights.take(name + ".gate.weight", {experts, dims}, mx::float32)),
        bias_(weights.take(name + ".gate.e_score_correction_bias", {experts}, mx::float32)),
        pre_expert_proj(weights, name + ".pre_expert_proj", narrow, dims),
        pre_expert_norm(weights, name + ".pre_expert_norm", narrow, config.number("rms_norm_eps")),
        gate_proj(weights, name + ".experts.gate_proj", experts, hidden, narrow),
        up_proj(weights, name + ".experts.up_proj", experts, hidden, narrow),
        down_proj(weights, name + ".experts.down_proj", experts, narrow, hidden),
        post_expert_norm(weights, name + ".experts.post_expert_norm", narrow, config.number("post_norm_eps")),
        post_expert_proj(weights, name + ".post_expert_proj", dims, narrow) {}

  Selection selection_;
  float multiplier_;
  mx::array gate_; // [experts,dims], never quantized
  mx::array bias_; // [experts]
  Linear pre_expert_proj;
  RMSNorm pre_expert_norm;
  Experts gate_proj;
  Experts up_proj;
  Experts down_proj;
  InputScaleNorm post_expert_norm;
  Linear post_expert_proj;
};

/** q, k, v and a gate on the output are one layer; norms without weights on heads, before and after. */
class GatedAttention {
 public:
  GatedAttention(const Config& config, const Sizes& sizes, Weights& weights, const std::string& name, Attention how)
      : heads_(sizes.num_attention_heads),
        kv_heads_(sizes.num_key_value_heads),
        head_dim_(sizes.head_dim),
        eps_(config.number("rms_norm_eps")),
        q_scale_(config.number("qk_scale_factor", 5.4730064863875)),
        how_(std::move(how)),
        qkvg_proj(weights, name + ".qkvg_proj", 2 * (heads_ + kv_heads_) * head_dim_, sizes.hidden_size),
        o_proj(weights, name + ".o_proj", sizes.hidden_size, heads_ * head_dim_) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto all = mx::reshape(qkvg_proj(x), {x.shape(0), -1, head_dim_});
    auto parts = mx::split(all, mx::Shape{heads_, heads_ + kv_heads_, heads_ + 2 * kv_heads_}, 1);
    auto q = scaled(rms_norm(parts[0], eps_), q_scale_), k = rms_norm(parts[1], eps_);
    return o_proj(rms_norm(cache.attend(q, k, parts[2], how_), eps_) * mx::sigmoid(parts[3]));
  }

 private:
  int heads_;
  int kv_heads_;
  int head_dim_;
  float eps_;
  float q_scale_;
  Attention how_;
  Linear qkvg_proj;
  Linear o_proj;
};

/** A gate's number to what stays of the stream and what comes in. */
void put_residual_gate(Weights& weights, const std::string& from, const std::string& to) {
  if (auto gate = weights.pull(from)) {
    auto w = mx::astype(*gate, mx::float32) / mx::array(0.3f), one = mx::array(1.0f);
    auto beta = mx::sigmoid(w);
    weights.put(to + "_beta", beta);
    weights.put(to + "_alpha", mx::sqrt(mx::maximum(mx::sigmoid(mx::negative(w)) * (one + beta), mx::array(1e-3f))));
  }
}

/** q, k, v and gate to one layer. Hugging Face's RoPE pairs the two halves of a head's rows, ours neighbours. */
void fuse_projections(Weights& weights, const std::string& name, int head_dim) {
  for (auto* part : {".weight", ".scales", ".biases"}) {
    std::vector<mx::array> all;
    for (auto* layer : {".q_proj", ".k_proj", ".v_proj", ".gate_proj"}) {
      auto rows = weights.pull(name + layer + part);
      if (!rows) {
        continue;
      }
      if (all.size() < 2) {
        auto halves = mx::reshape(*rows, {-1, 2, head_dim / 2, rows->shape(1)});
        rows = mx::reshape(mx::swapaxes(halves, 1, 2), rows->shape());
      }
      all.push_back(*rows);
    }
    if (!all.empty()) {
      weights.put(name + ".qkvg_proj" + part, mx::concatenate(all, 0));
    }
  }
}

/** Hugging Face's layout to mlx-lm's. */
void to_ours(Weights& weights, const std::string& layer, int head_dim) {
  put_residual_gate(weights, layer + ".post_attention_residual_gate.gate", layer + ".add_attn");
  put_residual_gate(weights, layer + ".post_feedforward_residual_gate.gate", layer + ".add_ffn");
  for (auto* norm :
       {".input_layernorm",
        ".pre_feedforward_layernorm",
        ".post_feedforward_layernorm",
        ".mlp.pre_expert_norm",
        ".mlp.experts.post_expert_norm"}) { // weight - 1
    auto name = layer + norm + ".weight";
    if (auto stored = weights.pull(name)) {
      weights.put(name, mx::astype(mx::astype(*stored, mx::float32) + mx::array(1.0f), mx::bfloat16));
    }
  }
  auto experts = layer + ".mlp.experts";
  split_gate_up(weights, experts + ".gate_up_proj", experts, false);
  if (auto down = weights.pull(experts + ".down_proj")) {
    weights.put(experts + ".down_proj.weight", *down);
  }
  fuse_projections(weights, layer + ".self_attn", head_dim);
}

} // namespace

std::unique_ptr<Model> make_muse_spark(const Config& outer, Weights& weights) {
  auto config = with_names(outer.object("text_config"), {{"intermediate_size", "moe_intermediate_size"}});
  for (auto* part : {"audio_tower.", "vision_tower.", "vision_adapter.", "vision_projection."}) {
    weights.ignore(std::string("model.") + part);
  }
  if (config.integer("num_shared_experts", 0) != 0) {
    fail(Kind::invalid, "[{}] 'num_shared_experts' must be 0", config.where);
  }
  if (config.has("mlp_layer_types")) {
    for (auto& type : config.texts("mlp_layer_types")) {
      if (type != "sparse") {
        fail(Kind::invalid, "[{}] 'mlp_layer_types' may hold sparse; got '{}'", config.where, type);
      }
    }
  }
  Sizes sizes(config);
  int dims = sizes.hidden_size;
  float eps = config.number("rms_norm_eps"), post_eps = config.number("post_norm_eps");
  auto dtype = weights.dtype();
  auto windows = layer_windows(config, sizes.num_hidden_layers);
  auto rotates = rotating_layers(config, windows);
  const bool converted = !weights.names_ending("_alpha").empty();

  auto model = std::make_unique<Decoder>(weights, root + "embed_tokens", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim, {.traditional = true}));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("{}layers.{}", root, i);
    if (!converted) {
      to_ours(weights, name, sizes.head_dim);
    }
    auto how = scaled_attention(sizes.head_dim, rotates[i] ? rope : nullptr, windows[i]);
    GatedAttention attend(config, sizes, weights, name + ".self_attn", how);
    NarrowMoe moe(config, weights, name + ".mlp");
    RMSNorm before_attention(weights, name + ".input_layernorm", dims, eps);
    RMSNorm before_mlp(weights, name + ".pre_feedforward_layernorm", dims, eps);
    InputScaleNorm after_mlp(weights, name + ".post_feedforward_layernorm", dims, post_eps);
    ResidualGate add_attn(weights, name + ".add_attn", dims), add_ffn(weights, name + ".add_ffn", dims);
    model->add(
        [=](const mx::array& stream, Cache& cache) {
          auto y = attend(mx::astype(before_attention(stream), dtype), cache);
          auto h = add_attn(stream, rms_norm(y, post_eps));
          return add_ffn(h, after_mlp(moe(mx::astype(before_mlp(h), dtype))));
        },
        sizes.cache());
  }
  RMSNorm last(weights, root + "norm", dims, eps);
  model->norm = [=](const mx::array& stream) { return mx::astype(last(stream), dtype); };
  model->head = Linear(weights, "lm_head", sizes.vocab_size, dims);
  model->embedded = [eps](const mx::array& x, Caches&) { return mx::astype(rms_norm(x, eps), mx::float32); };
  float by = config.number("output_multiplier"), cap = config.number("final_logit_softcapping");
  model->scored = [=](const mx::array& x) { return softcapped(scaled(mx::astype(x, mx::float32), by), cap); };
  return model;
}

} // namespace parallm
