// LongCat-Flash (arXiv 2509.01322): two blocks of latent attention and feed-forward
// a layer, with experts beside the second one that the first one's attention feeds;
// some experts do nothing. LongCat-Flash-Lite adds embeddings of each token's last
// few to its own (arXiv 2601.21204).
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

void add_layers(Decoder& model, const Config& config, Weights& weights) {
  require_text(config, "attention_method", "MLA");
  require_text(config, "zero_expert_type", "identity");
  require_off(config, "tie_word_embeddings");
  weights.ignore("model.mtp");
  auto args = latent_args(config);
  int dims = args.hidden_size;
  float eps = config.number("rms_norm_eps", 1e-5);
  auto* rope = model.keep(make_rope(config, args.qk_rope_head_dim, {.theta = 1e7, .traditional = true}));
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
      model.add(
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
}

/** A step's token ids, for a block that reads them. */
class IdsDecoder : public Decoder {
 public:
  using Decoder::Decoder;
  std::shared_ptr<std::optional<mx::array>> ids = std::make_shared<std::optional<mx::array>>();

  mx::array hidden(const mx::array& step, Caches& caches) override {
    *ids = step;
    return Decoder::hidden(step, caches);
  }
};

/** The mean of a token's embedding and those of the n-grams that end with it, each
 * of which several tables hold, by its number in base `vocab_size` modulo the
 * table's rows. Before a sequence's first token stand tokens 0. */
class NgramEmbedding {
 public:
  NgramEmbedding(const Config& config, Weights& weights, const std::string& name)
      : longest_(config.count("emb_neighbor_num", 4)), tables_(config.count("emb_split_num", 4)) {
    int dims = config.count("hidden_size"), count = tables_ * (longest_ - 1), vocabulary = config.count("vocab_size");
    int least = config.count("ngram_vocab_size_ratio", 78) * vocabulary;
    for (int i = 0; i < count; ++i) {
      int rows = least + 2 * i + 1, width = dims / count;
      rows_.push_back(rows);
      embedders.emplace_back(weights, fmt::format("{}.embedders.{}", name, i), rows, width);
      post_projs.emplace_back(weights, fmt::format("{}.post_projs.{}", name, i), dims, width);
      auto& powers = powers_.emplace_back();
      int64_t power = 1;
      for (int k = 0; k <= i / tables_; ++k) {
        powers.push_back(power = power * vocabulary % rows);
      }
    }
  }

  /** ids int32 [T], x [T,D] their own embeddings -> [T,D]. */
  mx::array operator()(const mx::array& ids, const mx::array& x, Cache& cache) const {
    auto before =
        mx::astype(cache.recur({ids}, [this](auto& in, auto& states) { return earlier(in[0], states[0]); }), mx::int64);
    auto last = mx::astype(ids, mx::int64);
    auto sum = x;
    for (size_t i = 0; i < embedders.size(); ++i) {
      auto number = last;
      for (size_t k = 0; k < powers_[i].size(); ++k) {
        number = number + mx::take(before, int(k), 1) * mx::array(powers_[i][k], mx::int64);
      }
      auto row = mx::astype(mx::remainder(number, mx::array(rows_[i], mx::int64)), mx::int32);
      sum = sum + post_projs[i](embedders[i](row));
    }
    return sum / mx::array(float(1 + embedders.size()), x.dtype());
  }

  CacheSpec cache() const {
    return {.states = {{{longest_ - 1}, mx::int32}}};
  }

 private:
  /** ids [B,L], `state` [B,n-1] the last ones before them -> [B,L,n-1], the nearest first. */
  mx::array earlier(const mx::array& ids, mx::array& state) const {
    int rows = ids.shape(0), length = ids.shape(1), kept = longest_ - 1;
    auto all = mx::concatenate({state, ids}, 1);
    std::vector<mx::array> shifted;
    for (int k = 1; k <= kept; ++k) {
      shifted.push_back(mx::slice(all, {0, kept - k}, {rows, kept - k + length}));
    }
    state = mx::slice(all, {0, length}, {rows, length + kept});
    return mx::stack(shifted, 2);
  }

  int longest_; // n
  int tables_; // for each length from 2 to n
  std::vector<int> rows_;
  std::vector<std::vector<int64_t>> powers_; // of vocab_size, from the first on, modulo a table's rows
  std::vector<Embedding> embedders;
  std::vector<Linear> post_projs;
};

} // namespace

std::unique_ptr<Model> make_longcat_flash(const Config& config, Weights& weights) {
  auto model = usual_decoder(config, weights, config.count("hidden_size"), config.number("rms_norm_eps", 1e-5));
  add_layers(*model, config, weights);
  return model;
}

std::unique_ptr<Model> make_longcat_flash_ngram(const Config& config, Weights& weights) {
  int vocabulary = config.count("vocab_size"), dims = config.count("hidden_size");
  std::string name = "model.ngram_embeddings", words = name + ".word_embeddings";
  if (weights.has("model.embed_tokens.weight")) {
    weights.pull(words + ".weight"); // the same once more, where it is
    weights.rename("model.embed_tokens.", words + ".");
  }
  auto model = std::make_unique<IdsDecoder>(Embedding(weights, words, vocabulary, dims), vocabulary);
  NgramEmbedding ngrams(config, weights, name);
  auto ids = model->ids;
  model->add([=](const mx::array& x, Cache& cache) { return ngrams(ids->value(), x, cache); }, ngrams.cache());
  add_layers(*model, config, weights);
  model->norm = RMSNorm(weights, "model.norm", dims, config.number("rms_norm_eps", 1e-5));
  model->head = untied_head(config, weights, vocabulary, dims);
  return model;
}

} // namespace parallm
