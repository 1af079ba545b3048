// LongCat-Flash (arXiv 2509.01322): two blocks of latent attention and feed-forward
// a layer, with experts beside the second one that the first one's attention feeds;
// some experts do nothing.
#include "base/error.h"
#include "models/latent_attention.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/shared_experts.h"

#include <cmath>

namespace parallm {

namespace {

/** Experts from `n_routed_experts` on give back what they get. */
class ZeroExpertsMoe {
 public:
  ZeroExpertsMoe(const Config& config, Weights& weights, const std::string& name)
      : count_(config.count("n_routed_experts")),
        how_{
            .choices = config.count("moe_topk"),
            .normalize = config.boolean("norm_topk_prob", false),
            .scale = float(config.number("routed_scaling_factor", 1))},
        classifier(weights, name + ".router.classifier", all(config), config.count("hidden_size")),
        bias_(weights.take(name + ".router.e_score_correction_bias", {all(config)}, mx::float32)),
        switch_mlp([&] {
          stack_experts(weights, name + ".experts", name + ".switch_mlp", count_);
          return SwitchGLU(
              weights,
              name + ".switch_mlp",
              count_,
              config.count("hidden_size"),
              config.count("expert_ffn_hidden_size"));
        }()) {}

  mx::array operator()(const mx::array& x) const {
    auto scores = mx::softmax(mx::astype(classifier(x), mx::float32), -1, true);
    auto choice = choose_by_score(scores, bias_, how_);
    auto works = mx::less(choice.experts, mx::array(count_));
    auto none = mx::array(0.0f);
    auto y = switch_mlp(x, {mx::where(works, choice.experts, mx::array(0)), mx::where(works, choice.weights, none)});
    auto kept = mx::sum(mx::where(works, none, choice.weights), -1, true);
    return y + x * mx::astype(kept, x.dtype());
  }

 private:
  static int all(const Config& config) {
    return config.count("n_routed_experts") + config.integer("zero_expert_num", 0);
  }

  int count_; // of the experts that work
  Selection how_;
  Linear classifier;
  mx::array bias_; // [experts]
  SwitchGLU switch_mlp;
};

LatentArgs latent_args(const Config& config) {
  LatentArgs args(config);
  if (config.boolean("mla_scale_q_lora", false)) {
    args.q_scale = std::sqrt(float(args.hidden_size) / config.count("q_lora_rank"));
  }
  if (config.boolean("mla_scale_kv_lora", false)) {
    args.kv_scale = std::sqrt(float(args.hidden_size) / args.kv_lora_rank);
  }
  return args;
}

} // namespace

std::unique_ptr<Model> make_longcat_flash(const Config& config, Weights& weights) {
  require_text(config, "attention_method", "MLA");
  require_text(config, "zero_expert_type", "identity");
  require_off(config, "tie_word_embeddings");
  weights.ignore("model.mtp");
  auto args = latent_args(config);
  int dims = args.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  auto model = usual_decoder(config, weights, dims, eps);
  auto* rope = model->keep(make_rope(config, args.qk_rope_head_dim, {.theta = 1e7, .traditional = true}));
  for (int i = 0; i < config.count("num_layers"); ++i) {
    auto name = layer_name(i);
    ZeroExpertsMoe experts(config, weights, name + ".mlp");
    auto routed = std::make_shared<std::optional<mx::array>>(); // from the first block to the second
    for (int half : {0, 1}) {
      auto of = [&](const char* part) { return fmt::format("{}.{}.{}", name, part, half); };
      split_kv_b(weights, of("self_attn"), args, true);
      LatentAttention attend(weights, of("self_attn"), args, rope);
      GatedMLP mlp(weights, of("mlps"), dims, config.count("ffn_hidden_size"));
      RMSNorm before(weights, of("input_layernorm"), dims, eps);
      RMSNorm between(weights, of("post_attention_layernorm"), dims, eps);
      model->add(
          [=](const mx::array& x, Cache& cache) {
            auto h = x + attend(before(x), cache);
            auto normed = between(h);
            if (half == 0) {
              *routed = experts(normed);
              return h + mlp(normed);
            }
            return h + mlp(normed) + routed->value();
          },
          args.cache());
    }
  }
  return model;
}

} // namespace parallm
