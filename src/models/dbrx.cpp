// DBRX (Databricks, 2024): layer norms, q, k and v one layer, clipped; experts.
#include "base/error.h"
#include "models/attention.h"
#include "models/rope_scaling.h"
#include "nn/moe.h"

namespace parallm {

namespace {

/** Databricks' experts lie one after another in one tensor, the last matrix of each
 * with its inputs first; mlx-lm's each on its own, and so a recording gets them. */
void gather_experts(Weights& weights, const std::string& name, int count, int dims, int hidden) {
  for (auto [theirs, ours] : {std::pair("w1", "gate_proj"), {"v1", "up_proj"}, {"w2", "down_proj"}}) {
    const bool last = std::string(theirs) == "w2";
    const auto to = fmt::format("{}.{}", name, ours);
    const auto own = [&, theirs = theirs](int e) { return fmt::format("{}.{}.{}", name, e, theirs); };
    auto all = weights.pull(fmt::format("{}.mlp.{}", name, theirs));
    if (all) {
      all = mx::reshape(*all, {count, hidden, dims});
      all = last ? mx::contiguous(mx::swapaxes(*all, 1, 2)) : *all;
    }
    for (int e = 0; e < count; ++e) {
      if (all) {
        weights.put(own(e) + ".weight", mx::take(*all, e, 0));
      }
      weights.record_whole(own(e), last ? hidden : dims, {to});
      if (all) {
        weights.pull(own(e) + ".weight");
      }
    }
    if (all) {
      weights.put(to + ".weight", *all);
    }
    weights.stack(fmt::format("{}.{{}}.{}", name, theirs), count, to);
  }
}

} // namespace

std::unique_ptr<Model> make_dbrx(const Config& given, Weights& weights) {
  auto config = with_names(
      given, {{"hidden_size", "d_model"}, {"num_hidden_layers", "n_layers"}, {"num_attention_heads", "n_heads"}});
  auto attention = config.object("attn_config"), ffn = config.object("ffn_config");
  if (double p = ffn.number("moe_normalize_expert_weights", 1); p != 1) {
    fail(Kind::invalid, "[{}] 'moe_normalize_expert_weights' must be 1; got {}", ffn.where, p);
  }
  if (ffn.has("ffn_act_fn")) {
    require_text(ffn.object("ffn_act_fn"), "name", "silu");
  }
  require_off(config, "tie_word_embeddings");
  config.json["num_key_value_heads"] = attention.count("kv_n_heads");
  config.json["intermediate_size"] = ffn.count("ffn_hidden_size");
  Sizes sizes(config);
  int dims = sizes.hidden_size, experts = ffn.count("moe_num_experts"), choices = ffn.count("moe_top_k");
  float clip = attention.number("clip_qkv");
  constexpr float eps = 1e-5f;
  auto choose = [choices](const mx::array& logits) { return choose_then_softmax(logits, choices); };

  auto model = std::make_unique<Decoder>(weights, "transformer.wte", sizes);
  auto* rope = model->keep(plain_rope(sizes.head_dim, attention.number("rope_theta")));
  for (int i = 0; i < sizes.num_hidden_layers; ++i) {
    auto name = fmt::format("transformer.blocks.{}", i), part = name + ".norm_attn_norm";
    FusedProjections project(weights, part + ".attn", sizes, false, false, {.o = "out_proj", .qkv = "Wqkv"});
    auto how = scaled_attention(sizes.head_dim, rope);
    auto attend = [=](const mx::array& x, Cache& cache) {
      auto clipped = [&](const mx::array& y) {
        return mx::clip(y, mx::array(-clip, y.dtype()), mx::array(clip, y.dtype()));
      };
      auto [q, k, v] = project(x);
      return project.out(cache.attend(clipped(q), clipped(k), clipped(v), how));
    };
    auto stacked = name + ".ffn.experts";
    gather_experts(weights, stacked, experts, dims, sizes.intermediate_size);
    model->add(
        PreNormBlock(
            LayerNorm(weights, part + ".norm_1", dims, eps),
            attend,
            LayerNorm(weights, part + ".norm_2", dims, eps),
            SparseMoe(weights, name + ".ffn.router.layer", stacked, experts, dims, sizes.intermediate_size, choose)),
        sizes.cache());
  }
  model->norm = LayerNorm(weights, "transformer.norm_f", dims, eps);
  model->head = Linear(weights, "lm_head", sizes.vocab_size, dims);
  return model;
}

} // namespace parallm
