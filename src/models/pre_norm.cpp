#include "models/pre_norm.h"

namespace parallm {

GroupedAttention::GroupedAttention(
    Weights& weights,
    const std::string& name,
    const GroupedAttentionArgs& args,
    Attention how)
    : norms_(args.norms),
      how_(std::move(how)),
      project_(weights, name, args.sizes, args.bias, args.output_bias, args.names) {
  if (norms_ != HeadNorms::none) {
    auto& sizes = args.sizes;
    bool all = norms_ == HeadNorms::all_heads;
    q_norm.emplace(weights, name + ".q_norm", sizes.head_dim * (all ? sizes.num_attention_heads : 1), args.norm_eps);
    k_norm.emplace(weights, name + ".k_norm", sizes.head_dim * (all ? sizes.num_key_value_heads : 1), args.norm_eps);
  }
}

mx::array GroupedAttention::normed(const mx::array& x, const RMSNorm& norm) const {
  return norms_ == HeadNorms::each_head ? norm(x) : mx::reshape(norm(mx::flatten(x, 1, 2)), x.shape());
}

mx::array GroupedAttention::attend(const mx::array& x, Cache& cache) const {
  auto [q, k, v] = project_(x);
  return cache.attend(q_norm ? normed(q, *q_norm) : q, k_norm ? normed(k, *k_norm) : k, v, how_);
}

mx::array GroupedAttention::out(const mx::array& attended) const {
  return project_.out(attended);
}

mx::array GroupedAttention::operator()(const mx::array& x, Cache& cache) const {
  return out(attend(x, cache));
}

Decoder::Block pre_norm_block(
    Weights& weights,
    const std::string& name,
    int dims,
    float eps,
    const Decoder::Block& attend,
    const Decoder::Map& feed_forward,
    float residual_scale) {
  RMSNorm before(weights, name + ".input_layernorm", dims, eps);
  RMSNorm between(weights, name + ".post_attention_layernorm", dims, eps);
  const auto added = [residual_scale](const mx::array& x) {
    return residual_scale == 1 ? x : scaled(x, residual_scale);
  };
  return [=](const mx::array& x, Cache& cache) {
    auto h = add_residual(x, added(attend(before(x), cache)));
    return add_residual(h, added(feed_forward(between(h))));
  };
}

std::unique_ptr<Decoder> usual_decoder(const Config& config, Weights& weights, int dims, float eps) {
  int vocabulary = config.count("vocab_size");
  auto model = std::make_unique<Decoder>(Embedding(weights, "model.embed_tokens", vocabulary, dims), vocabulary);
  model->norm = RMSNorm(weights, "model.norm", dims, eps);
  model->head = untied_head(config, weights, vocabulary, dims);
  return model;
}

std::string layer_name(int layer) {
  return fmt::format("model.layers.{}", layer);
}

} // namespace parallm
