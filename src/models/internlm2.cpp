// InternLM 2 and 2.5 (arXiv 2403.17297): Llama's block, whose q, k and v are one
// layer that holds each kv head's queries, key and value together.
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/mlp.h"

namespace parallm {

namespace {

class GroupedProjections {
 public:
  GroupedProjections(Weights& weights, const std::string& name, const Sizes& sizes, bool bias)
      : heads_(sizes.num_attention_heads),
        kv_heads_(sizes.num_key_value_heads),
        head_dim_(sizes.head_dim),
        wqkv(weights, name + ".wqkv", (heads_ + 2 * kv_heads_) * head_dim_, sizes.hidden_size, bias),
        wo(weights, name + ".wo", sizes.hidden_size, heads_ * head_dim_, bias) {}

  Heads operator()(const mx::array& x) const {
    int count = x.shape(0), queries = heads_ / kv_heads_;
    auto all = mx::reshape(wqkv(x), {count, kv_heads_, queries + 2, head_dim_});
    auto parts = mx::split(all, mx::Shape{queries, queries + 1}, 2);
    return {
        mx::reshape(parts[0], {count, heads_, head_dim_}),
        mx::reshape(parts[1], {count, kv_heads_, head_dim_}),
        mx::reshape(parts[2], {count, kv_heads_, head_dim_})};
  }

  mx::array out(const mx::array& y) const {
    return wo(mx::flatten(y, 1, 2));
  }

 private:
  int heads_;
  int kv_heads_;
  int head_dim_;
  Linear wqkv;
  Linear wo;
};

} // namespace

std::unique_ptr<Model> make_internlm2(const Config& config, Weights& weights) {
  Sizes sizes(config);
  float eps = config.number("rms_norm_eps", 1e-6);
  bool bias = config.boolean("bias", true);
  auto act = activation(config.text("hidden_act", "silu"));
  auto model = std::make_unique<Decoder>(weights, "model.tok_embeddings", sizes);
  auto* rope = model->keep(make_rope(config, sizes.head_dim));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("model.layers.{}", i);
    weights.ignore(name + ".attention.rope.");
    model->add(
        PreNormBlock(
            RMSNorm(weights, name + ".attention_norm", sizes.hidden_size, eps),
            SelfAttention(
                GroupedProjections(weights, name + ".attention", sizes, bias), scaled_attention(sizes.head_dim, rope)),
            RMSNorm(weights, name + ".ffn_norm", sizes.hidden_size, eps),
            GatedMLP(
                weights,
                name + ".feed_forward",
                sizes.hidden_size,
                sizes.intermediate_size,
                act,
                false,
                {.gate = "w1", .up = "w3", .down = "w2"})),
        sizes.cache());
  }
  model->norm = RMSNorm(weights, "model.norm", sizes.hidden_size, eps);
  if (config.boolean("tie_word_embeddings", false)) {
    weights.ignore("output.");
  } else {
    model->head = Linear(weights, "output", sizes.vocab_size, sizes.hidden_size);
  }
  return model;
}

} // namespace parallm
