#include "models/latent_attention.h"

#include "base/error.h"

#include <cmath>

namespace parallm {

namespace {

/** YaRN's temperature on scores: (0.1 * mscale_all_dim * ln(factor) + 1) squared
 * (modeling_deepseek.py). */
float yarn_temperature(const Config& config) {
  if (!config.has("rope_scaling")) {
    return 1;
  }
  auto options = config.object("rope_scaling");
  double factor = options.number("factor", 1);
  double all_dims = options.number("mscale_all_dim", 0);
  double m = factor > 1 ? 0.1 * all_dims * std::log(factor) + 1 : 1;
  return m * m;
}

mx::array part(const mx::array& x, int first, int last) { // of the last axis
  mx::Shape start(x.ndim(), 0);
  auto stop = x.shape();
  start.back() = first;
  stop.back() = last;
  return mx::slice(x, start, stop);
}

} // namespace

LatentArgs::LatentArgs(const Config& config)
    : hidden_size(config.count("hidden_size")),
      num_attention_heads(config.count("num_attention_heads")),
      q_lora_rank(config.count("q_lora_rank", 0)),
      kv_lora_rank(config.count("kv_lora_rank")),
      qk_nope_head_dim(config.count("qk_nope_head_dim")),
      qk_rope_head_dim(config.count("qk_rope_head_dim")),
      v_head_dim(config.count("v_head_dim")),
      attention_bias(config.boolean("attention_bias", false)),
      scale(yarn_temperature(config) / std::sqrt(float(qk_nope_head_dim + qk_rope_head_dim))) {}

Indexer::Indexer(Weights& weights, const std::string& name, const LatentArgs& args, const Rope* rope)
    : heads_(args.index_n_heads),
      dims_(args.index_head_dim),
      choices_(args.index_topk),
      rope_(rope),
      wq_b(weights, name + ".wq_b", heads_ * dims_, args.q_lora_rank),
      wk(weights, name + ".wk", dims_, args.hidden_size),
      k_norm(weights, name + ".k_norm", dims_, 1e-5f, true),
      weights_proj(weights, name + ".weights_proj", heads_, args.hidden_size) {}

KeySelector Indexer::operator()(const mx::array& x, const mx::array& narrow) const {
  auto q = mx::reshape(wq_b(narrow), {x.shape(0), heads_, dims_});
  auto shares = scaled(weights_proj(x), 1 / std::sqrt(float(heads_) * float(dims_)));
  return {.q = q, .k = k_norm(wk(x)), .rope = rope_, .choices = choices_, .weights = shares};
}

LatentAttention::LatentAttention(
    Weights& weights,
    const std::string& name,
    const LatentArgs& args,
    const Rope* rope,
    const Rope* index_rope)
    : args_(args),
      how_{.scale = args.scale, .rope = rope, .sinks = {}},
      kv_a_proj_with_mqa(
          weights,
          name + ".kv_a_proj_with_mqa",
          args.kv_lora_rank + args.qk_rope_head_dim,
          args.hidden_size,
          args.attention_bias),
      kv_a_layernorm(weights, name + ".kv_a_layernorm", args.kv_lora_rank, args.norm_eps),
      embed_q(weights, name + ".embed_q", args.num_attention_heads, args.kv_lora_rank, args.qk_nope_head_dim),
      unembed_out(weights, name + ".unembed_out", args.num_attention_heads, args.v_head_dim, args.kv_lora_rank),
      o_proj(
          weights,
          name + "." + args.output,
          args.hidden_size,
          args.num_attention_heads * args.v_head_dim,
          args.attention_bias) {
  int width = args.num_attention_heads * (args.qk_nope_head_dim + args.qk_rope_head_dim);
  if (args.q_lora_rank == 0) {
    q_proj.emplace(weights, name + ".q_proj", width, args.hidden_size);
    return;
  }
  q_a_proj.emplace(weights, name + ".q_a_proj", args.q_lora_rank, args.hidden_size, args.attention_bias);
  q_a_layernorm.emplace(weights, name + ".q_a_layernorm", args.q_lora_rank, args.norm_eps);
  q_b_proj.emplace(weights, name + ".q_b_proj", width, args.q_lora_rank);
  if (args.index_topk > 0) {
    indexer.emplace(weights, name + ".indexer", args, index_rope);
  }
}

mx::array LatentAttention::operator()(const mx::array& x, Cache& cache) const {
  return out(attend(x, cache));
}

mx::array LatentAttention::out(const mx::array& attended) const {
  return o_proj(mx::flatten(attended, 1, 2));
}

mx::array LatentAttention::attend(const mx::array& x, Cache& cache) const {
  int count = x.shape(0);
  int nope = args_.qk_nope_head_dim, rank = args_.kv_lora_rank, rotated = args_.qk_rope_head_dim;
  auto narrow = q_proj ? x : (*q_a_layernorm)((*q_a_proj)(x));
  auto q = q_proj ? (*q_proj)(x) : (*q_b_proj)(narrow);
  q = args_.q_scale == 1 ? q : scaled(q, args_.q_scale);
  q = mx::reshape(q, {count, args_.num_attention_heads, nope + rotated});
  q = mx::concatenate({part(q, nope, nope + rotated), embed_q(part(q, 0, nope))}, 2);

  auto both = kv_a_proj_with_mqa(x);
  auto latent = kv_a_layernorm(part(both, 0, rank));
  latent = args_.kv_scale == 1 ? latent : scaled(latent, args_.kv_scale);
  auto k = mx::concatenate({part(both, rank, rank + rotated), latent}, 1);

  k = mx::expand_dims(k, 1);
  auto v = mx::expand_dims(latent, 1);
  auto y = indexer ? cache.attend_selected(q, k, v, how_, (*indexer)(x, narrow)) : cache.attend(q, k, v, how_);
  return unembed_out(y); // of [T,H,rank]
}

void split_kv_b(Weights& weights, const std::string& name, const LatentArgs& args, bool quantized_again) {
  auto from = name + ".kv_b_proj";
  auto how = weights.stored_quantization(from, args.kv_lora_rank);
  auto w = weights.pull(from + ".weight");
  if (!w) {
    return;
  }
  std::optional<mx::array> factor;
  if (auto global = weights.pull(from + ".global_scale")) {
    factor = mx::divide(*global, mx::array(global_scale_unit));
  }
  // mx::quantize doesn't make a GGUF file's groups of 16.
  const bool pack = how && quantized_again && !factor && (how->mode != "affine" || how->group_size >= 32);
  if (how) {
    auto scales = *weights.pull(from + ".scales");
    auto biases = weights.pull(from + ".biases");
    if (w->shape(-1) * 32 != args.kv_lora_rank * how->bits || scales.shape(-1) * how->group_size != args.kv_lora_rank) {
      fail(Kind::invalid, "[latent_attention] {}: can't tell how it is quantized", from);
    }
    // What stays dense keeps all that the codes say; what is packed again goes mlx-lm's way, in the scales' type.
    auto type = !pack ? mx::float32 : biases ? scales.dtype() : mx::bfloat16;
    std::optional<mx::StreamContext> cpu;
    if (pack) {
      cpu.emplace(mx::Device::cpu); // the codes depend on each bit: as mlx-lm's references
    }
    w = dequantize(*w, scales, biases, *how, type, factor);
  }
  int heads = args.num_attention_heads, width = args.qk_nope_head_dim + args.v_head_dim;
  if (w->shape() != mx::Shape{heads * width, args.kv_lora_rank}) {
    fail(Kind::invalid, "[latent_attention] {}.weight must be [{}, {}]", from, heads * width, args.kv_lora_rank);
  }
  auto parts = mx::split(mx::reshape(*w, {heads, width, args.kv_lora_rank}), mx::Shape{args.qk_nope_head_dim}, 1);
  const auto put = [&](const std::string& to, mx::array matrix) {
    matrix = mx::contiguous(matrix);
    if (pack) {
      weights.put_quantized(to, matrix, *how);
    } else {
      weights.put(to + ".weight", matrix);
    }
  };
  put(name + ".embed_q", mx::swapaxes(parts[0], 1, 2));
  put(name + ".unembed_out", parts[1]);
}

void record_kv_b(Weights& weights, const std::string& name, const LatentArgs& args) {
  weights.record_whole(name + ".kv_b_proj", args.kv_lora_rank, {name + ".embed_q", name + ".unembed_out"});
}

} // namespace parallm
