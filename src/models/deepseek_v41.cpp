// DeepSeek-V4.1: a window of latents that are keys and values at once, and behind it
// compressed ones, each of a group of tokens, of which an indexer chooses few; layers
// share compressed keys and choices. A group's key lies at its last token in a cache of
// its own, which so has room for every token. Streams between the layers, mixed by
// hyper-connections (arXiv 2409.19606) whose matrices Sinkhorn's iteration makes
// doubly stochastic (arXiv 2512.24880).
#include "base/error.h"
#include "models/attention.h"
#include "models/deepseek_v41_names.h"
#include "models/pre_norm.h"
#include "models/rope_scaling.h"
#include "models/step_rotation.h"
#include "nn/mlp.h"
#include "nn/moe.h"
#include "nn/rounding.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace parallm {

namespace {

struct Args {
  explicit Args(const Config& config)
      : hidden(config.count("hidden_size", 5120)),
        layers(config.count("num_hidden_layers", 40)),
        vocabulary(config.count("vocab_size", 129280)),
        heads(config.count("num_attention_heads", 64)),
        head_dim(config.count("head_dim", 512)),
        q_rank(config.count("q_lora_rank", 1280)),
        rope_dim(config.count("qk_rope_head_dim", 64)),
        o_groups(config.count("o_groups", 8)),
        o_rank(config.count("o_lora_rank", 1024)),
        window(config.count("sliding_window", 128)),
        index_heads(config.count("index_n_heads", 32)),
        index_dim(config.count("index_head_dim", 128)),
        index_topk(config.count("index_topk", 512)),
        candidate_source(config.integer("candidate_source_layer_id", -1)),
        candidate_blocks(config.integer("candidate_topk_blocks", 2048)),
        candidate_block_size(config.count("candidate_block_size", 8)),
        streams(config.count("hc_mult", 4)),
        sinkhorn_steps(config.count("hc_sinkhorn_iters", 20)),
        hc_eps(config.number("hc_eps", 1e-6)),
        eps(config.number("rms_norm_eps", 1e-20)),
        ratios(config.integers("compress_ratios")),
        kv_sources(config.integers("kv_source_layer_ids")),
        index_sources(config.integers("index_source_layer_ids")) {}

  int hidden, layers, vocabulary, heads, head_dim, q_rank, rope_dim, o_groups, o_rank, window;
  int index_heads, index_dim, index_topk;
  int candidate_source, candidate_blocks, candidate_block_size;
  int streams, sinkhorn_steps;
  float hc_eps, eps;
  std::vector<int> ratios; // tokens of a compressed key, by layer; 0: the layer has the window alone
  std::vector<int> kv_sources; // layers that compress keys; others use the last one's before
  std::vector<int> index_sources; // layers that choose among them, likewise

  int ratio(int layer) const {
    return layer < int(ratios.size()) ? ratios[layer] : 0;
  }
  bool compresses(int layer) const {
    return ratio(layer) > 0 && std::count(kv_sources.begin(), kv_sources.end(), layer) > 0;
  }
  bool chooses(int layer) const {
    return ratio(layer) > 0 && std::count(index_sources.begin(), index_sources.end(), layer) > 0;
  }
};

mx::array part(const mx::array& x, int first, int last) { // of the last axis
  mx::Shape start(x.ndim(), 0);
  auto stop = x.shape();
  start.back() = first;
  stop.back() = last;
  return mx::slice(x, start, stop);
}

mx::array floats(const mx::array& x) {
  return mx::astype(x, mx::float32);
}

/** x [T,H,D], the last dims of each head rotated. */
mx::array turned(const mx::array& x, const StepRotation& rotation, int dims) {
  const int width = x.shape(-1);
  auto tail = mx::astype(rotation(floats(part(x, width - dims, width))), x.dtype());
  return mx::concatenate({part(x, 0, width - dims), tail}, -1);
}

/** A step's rotations. */
struct Turns {
  Turns(const Rope& rope, const std::vector<int>& ratios)
      : ahead(rope), back([&] {
          auto reversed = rope;
          for (auto& frequency : reversed.inverse_frequencies) {
            frequency = -frequency;
          }
          return reversed;
        }()) {
    for (int ratio : ratios) {
      groups.try_emplace(ratio, rope);
    }
  }

  void begin(const mx::array& positions) {
    ahead.begin(positions);
    back.begin(positions);
    for (auto& [ratio, rotation] : groups) {
      rotation.begin(positions - mx::array(ratio - 1));
    }
  }

  StepRotation ahead;
  StepRotation back;
  std::map<int, StepRotation> groups; // of the token that ends a group, to where it begins
};

/** What layers leave for later ones in a step. The last of each that was. */
struct Shared {
  struct Keys {
    Cache* cache;
    mx::array k; // the step's
    int ratio;
  };
  std::optional<Keys> compressed; // k [T,1,D]
  std::optional<Keys> index; // k [T,Di]
  std::optional<Chosen> chosen;
  Chosen candidates;
};

/** A group's latents to one: their sum, weighed by a softmax of their gates, number by number. */
class Compressor {
 public:
  Compressor(Weights& weights, const std::string& name, const Args& args, int ratio)
      : ratio_(ratio),
        kv_proj(weights, name + ".kv_proj", args.head_dim, args.hidden),
        kv_norm(weights, name + ".kv_norm", args.head_dim, args.eps) {
    if (ratio > 1) {
      gate_proj.emplace(weights, name + ".gate_proj", args.head_dim, args.hidden);
    }
  }

  /** x [T,hidden] -> [T,head_dim]: a group's at its last token; elsewhere nothing that is ever read. */
  mx::array operator()(const mx::array& x, const mx::array& positions, Cache& cache) const {
    if (ratio_ == 1) {
      return kv_norm(kv_proj(x));
    }
    auto wide = floats(x);
    auto both = mx::concatenate({kv_proj(wide), (*gate_proj)(wide)}, 1);
    auto latents = cache.recur({both, positions}, [&](const std::vector<mx::array>& inputs, auto& states) {
      return pooled(inputs[0], inputs[1], states[0]);
    });
    return kv_norm(mx::astype(latents, x.dtype()));
  }

 private:
  /** both [B,L,2D], positions [B,L], before [B,ratio-1,2D]: the tokens before them -> [B,L,D]. */
  mx::array pooled(const mx::array& both, const mx::array& positions, mx::array& before) const {
    const int rows = both.shape(0), length = both.shape(1), width = both.shape(2);
    auto all = mx::concatenate({before, both}, 1);
    before = mx::slice(all, {0, length, 0}, all.shape());
    const int groups = (length + ratio_ - 1) / ratio_; // that may end here
    auto first = mx::array(ratio_ - 1) - mx::remainder(mx::slice(positions, {0, 0}, {rows, 1}), mx::array(ratio_));
    auto ends = mx::minimum(first + mx::arange(groups) * mx::array(ratio_), mx::array(length - 1)); // [B,groups]
    auto places = mx::expand_dims(ends, 2) + mx::arange(ratio_);
    places = mx::broadcast_to(mx::expand_dims(mx::flatten(places, 1, 2), 2), {rows, groups * ratio_, width});
    auto parts = mx::unflatten(mx::take_along_axis(all, places, 1), 1, {groups, ratio_});
    auto kv = part(parts, 0, width / 2), gate = part(parts, width / 2, width);
    auto sums = mx::sum(kv * mx::softmax(gate, 2), 2); // [B,groups,D]
    ends = mx::broadcast_to(mx::expand_dims(ends, 2), sums.shape());
    return mx::put_along_axis(mx::zeros({rows, length, width / 2}), ends, sums, 1);
  }

  int ratio_;
  Linear kv_proj;
  std::optional<Linear> gate_proj;
  RMSNorm kv_norm;
};

class Indexer {
 public:
  Indexer(Weights& weights, const std::string& name, const Args& args, int layer)
      : args_(args),
        ratio_(args.ratio(layer)),
        finds_candidates_(layer == args.candidate_source && args.candidate_blocks > 0),
        q_b_proj(weights, name + ".q_b_proj", args.index_heads * args.index_dim, args.q_rank),
        weights_proj(weights, name + ".weights_proj", args.index_heads, args.hidden) {
    if (args.compresses(layer)) {
      k_proj.emplace(weights, name + ".k_proj", args.index_dim, args.head_dim);
      k_norm.emplace(weights, name + ".k_norm", args.index_dim, args.eps);
    }
  }

  /** latents [T,head_dim] of groups -> [T,index_dim]. */
  mx::array keys(const mx::array& latents, const StepRotation& rotation) const {
    auto k = turned(mx::expand_dims((*k_norm)((*k_proj)(latents)), 1), rotation, args_.rope_dim);
    return mx::squeeze(round_to_fp4(k, 32, false), 1);
  }

  /** x [T,hidden], narrow [T,q_lora_rank] the compressed queries. */
  void choose(const mx::array& x, const mx::array& narrow, const StepRotation& rotation, Shared& shared) const {
    auto q = mx::reshape(q_b_proj(narrow), {x.shape(0), args_.index_heads, args_.index_dim});
    q = round_to_fp4(turned(q, rotation, args_.rope_dim), 32, false);
    const float scale = 1 / std::sqrt(float(args_.index_heads) * float(args_.index_dim));
    auto shares = floats(weights_proj(x)) * mx::array(scale);
    auto& [cache, k, ratio] = *shared.index;
    KeySelector how{.q = q, .k = k, .choices = args_.index_topk, .weights = shares, .group = ratio_};
    if (finds_candidates_) {
      auto blocks = how;
      blocks.choices = args_.candidate_blocks;
      blocks.block = args_.candidate_block_size;
      blocks.local_blocks = 1;
      shared.candidates = cache->choose(blocks);
    } else {
      how.within = shared.candidates;
    }
    shared.chosen = cache->choose(how);
  }

 private:
  Args args_;
  int ratio_;
  bool finds_candidates_;
  Linear q_b_proj;
  Linear weights_proj;
  std::optional<Linear> k_proj;
  std::optional<RMSNorm> k_norm;
};

/** Two attentions of the same queries to one. */
mx::array joined(const Attended& a, const Attended& b) {
  auto all = mx::logaddexp(a.masses, b.masses);
  const auto share = [&](const Attended& one) {
    return floats(one.out) * mx::expand_dims(mx::exp(one.masses - all), 2);
  };
  return share(a) + share(b);
}

class CompressedAttention {
 public:
  CompressedAttention(Weights& weights, const std::string& name, const Args& args, int layer)
      : args_(args),
        ratio_(args.ratio(layer)),
        window_{.scale = 1 / std::sqrt(float(args.head_dim)), .window = args.window},
        q_a_proj(weights, name + ".q_a_proj", args.q_rank, args.hidden),
        q_a_norm(weights, name + ".q_a_norm", args.q_rank, args.eps),
        q_b_proj(weights, name + ".q_b_proj", args.heads * args.head_dim, args.q_rank),
        kv_proj(weights, name + ".kv_proj", args.head_dim, args.hidden),
        kv_norm(weights, name + ".kv_norm", args.head_dim, args.eps),
        o_a_proj(weights, name + ".o_a_proj", args.o_groups, args.o_rank, args.heads * args.head_dim / args.o_groups),
        o_b_proj(weights, name + ".o_b_proj", args.hidden, args.o_groups * args.o_rank) {
    window_.sinks = weights.take(name + ".sinks", {args.heads}, mx::float32);
    if (args.compresses(layer)) {
      compressor.emplace(weights, name + ".compressor", args, ratio_);
    }
    if (args.chooses(layer)) {
      indexer.emplace(weights, name + ".indexer", args, layer);
    }
  }

  /** x [T,hidden]; `entries`: the cache of the compressed keys that this layer makes, else null. */
  mx::array operator()(
      const mx::array& x,
      const mx::array& positions,
      const Turns& turns,
      Cache& cache,
      Cache* entries,
      Shared& shared) const {
    const int count = x.shape(0);
    auto narrow = q_a_norm(q_a_proj(x));
    auto q = mx::reshape(q_b_proj(narrow), {count, args_.heads, args_.head_dim});
    q = turned(q, turns.ahead, args_.rope_dim);
    auto kv = turned(mx::expand_dims(kv_norm(kv_proj(x)), 1), turns.ahead, args_.rope_dim);
    kv = round_to_fp8(kv, 32);
    if (compressor) {
      compress(x, positions, turns.groups.at(ratio_), *entries, shared);
    }
    if (indexer && shared.index) {
      indexer->choose(x, narrow, turns.ahead, shared);
    }
    auto y = [&] {
      if (ratio_ == 0 || !shared.compressed || !shared.chosen) {
        return cache.attend(q, kv, kv, window_);
      }
      auto& keys = *shared.compressed;
      auto near = cache.attend_openly(q, kv, kv, window_);
      auto far = keys.cache->attend_chosen(q, keys.k, keys.k, {.scale = window_.scale, .sinks = {}}, *shared.chosen);
      return mx::astype(joined(near, far), x.dtype());
    }();
    y = turned(y, turns.back, args_.rope_dim);
    y = o_a_proj(mx::reshape(y, {count, args_.o_groups, -1}));
    return o_b_proj(mx::reshape(y, {count, -1}));
  }

 private:
  void compress(
      const mx::array& x,
      const mx::array& positions,
      const StepRotation& rotation,
      Cache& entries,
      Shared& shared) const {
    auto latents = (*compressor)(x, positions, entries);
    auto k = turned(mx::expand_dims(latents, 1), rotation, args_.rope_dim);
    shared.compressed.emplace(Shared::Keys{&entries, round_to_fp4(k, 16, true), ratio_});
    if (indexer) {
      shared.index.emplace(Shared::Keys{&entries, indexer->keys(latents, rotation), ratio_});
    }
  }

  Args args_;
  int ratio_;
  Attention window_;
  Linear q_a_proj;
  RMSNorm q_a_norm;
  Linear q_b_proj;
  Linear kv_proj;
  RMSNorm kv_norm;
  MultiLinear o_a_proj;
  Linear o_b_proj;
  std::optional<Compressor> compressor;
  std::optional<Indexer> indexer;
};

/** How a layer reads the streams, [T,S,D], and writes to them. */
struct Mix {
  mx::array pre; // float32 [T,S]: of the next reading
  mx::array post; // float32 [T,S]: of what is written
  mx::array comb; // float32 [T,S,S]: from stream to stream
};

class HyperConnection {
 public:
  HyperConnection(Weights& weights, const std::string& name, const Args& args)
      : streams_(args.streams),
        steps_(args.sinkhorn_steps),
        hc_eps_(args.hc_eps),
        eps_(args.eps),
        fn(weights.take(name + ".fn", {width(), args.streams * args.hidden}, mx::float32)),
        base(weights.take(name + ".base", {width()}, mx::float32)),
        scale(weights.take(name + ".scale", {3}, mx::float32)) {}

  Mix operator()(const mx::array& streams) const {
    const int count = streams.shape(0), s = streams_;
    auto flat = rms_norm(floats(mx::flatten(streams, 1, 2)), eps_);
    std::vector<int32_t> kinds(2 * s, 0);
    std::fill(kinds.begin() + s, kinds.end(), 1);
    kinds.resize(width(), 2);
    auto scales = mx::take(scale, mx::array(kinds.data(), {width()}, mx::int32));
    auto mix = product(flat, fn) * scales + base;
    auto comb = mx::softmax(mx::reshape(part(mix, 2 * s, width()), {count, s, s}), -1) + mx::array(hc_eps_);
    for (int i = 0; i < 2 * steps_ - 1; ++i) { // columns, rows, columns, ...
      comb = comb / (mx::sum(comb, i % 2 == 0 ? -2 : -1, true) + mx::array(hc_eps_));
    }
    return {
        mx::sigmoid(part(mix, 0, s)) + mx::array(hc_eps_), mx::array(2.0f) * mx::sigmoid(part(mix, s, 2 * s)), comb};
  }

 private:
  int width() const {
    return (2 + streams_) * streams_;
  }

  int streams_;
  int steps_;
  float hc_eps_;
  float eps_;
  mx::array fn;
  mx::array base;
  mx::array scale;
};

/** [T,S,D] by [T,S] -> [T,D]. */
mx::array collapse(const mx::array& streams, const mx::array& pre) {
  return mx::astype(mx::sum(mx::expand_dims(pre, 2) * floats(streams), 1), streams.dtype());
}

mx::array expand(const mx::array& x, const mx::array& streams, const Mix& mix) {
  auto moved = mx::sum(mx::expand_dims(mix.comb, 3) * mx::expand_dims(floats(streams), 2), 1);
  return mx::astype(mx::expand_dims(mix.post, 2) * mx::expand_dims(floats(x), 1) + moved, streams.dtype());
}

SwitchGLU::Act clamped(float limit) {
  return [limit](const mx::array& gate, const mx::array& up) {
    auto g = floats(gate), u = floats(up);
    if (limit > 0) {
      g = mx::minimum(g, mx::array(limit));
      u = mx::clip(u, mx::array(-limit), mx::array(limit));
    }
    return mx::astype(silu(g) * u, gate.dtype());
  };
}

/** Routed experts, chosen by biased scores, beside a shared one. */
class Experts41 {
 public:
  Experts41(const Config& config, Weights& weights, const std::string& name, int dims)
      : how_{.choices = config.count("num_experts_per_tok", 6),
             .normalize = config.boolean("norm_topk_prob", true),
             .scale = float(config.number("routed_scaling_factor", 1.5))},
        scoring_(config.text("scoring_func", "sqrtsoftplus")),
        temperature_(config.number("gate_temp", 1)),
        gate(weights, name + ".gate", config.count("n_routed_experts", 384), dims),
        bias(weights.take(
            name + ".gate.e_score_correction_bias",
            {config.count("n_routed_experts", 384)},
            mx::float32)),
        routed(
            weights,
            name + ".experts.switch_mlp",
            config.count("n_routed_experts", 384),
            dims,
            config.count("moe_intermediate_size", 2304),
            clamped(config.number("swiglu_limit", 10))),
        shared(
            weights,
            name + ".shared_experts",
            dims,
            config.count("moe_intermediate_size", 2304),
            clamped(config.number("swiglu_limit", 10))) {
    if (scoring_ != "sigmoid" && scoring_ != "softmax" && scoring_ != "sqrtsoftplus") {
      fail(
          Kind::invalid,
          "[{}] 'scoring_func' must be sigmoid, softmax or sqrtsoftplus; got '{}'",
          config.where,
          scoring_);
    }
  }

  mx::array operator()(const mx::array& x) const {
    auto logits = gate(floats(x)) / mx::array(temperature_);
    auto scores = scoring_ == "sigmoid" ? mx::sigmoid(logits)
        : scoring_ == "softmax"         ? mx::softmax(logits, -1)
                                        : mx::sqrt(softplus(logits));
    return routed(x, choose_by_score(scores, bias, how_)) + shared(x);
  }

 private:
  Selection how_;
  std::string scoring_;
  float temperature_;
  Linear gate;
  mx::array bias;
  SwitchGLU routed;
  GluMLP shared;
};

struct Layer {
  CompressedAttention self_attn;
  Experts41 mlp;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
  HyperConnection attn_hc;
  HyperConnection ffn_hc;
  int entries; // the cache of the compressed keys that it makes; -1: it makes none
};

class DeepseekV41 : public Model {
 public:
  DeepseekV41(const Config& config, Weights& weights)
      : args_(config),
        embed_tokens(weights, "model.embed_tokens", args_.vocabulary, args_.hidden),
        norm(weights, "model.norm", args_.hidden, args_.eps),
        lm_head(weights, "lm_head", args_.vocabulary, args_.hidden),
        near_(plain_rope(args_.rope_dim, config.number("rope_theta", 10000), true), {}),
        far_(far_rope(config, args_), group_sizes(args_)) {
    specs_.assign(args_.layers, {1, args_.head_dim, args_.head_dim});
    for (int i = 0; i < args_.layers; ++i) {
      auto name = layer_name(i);
      int entries = -1;
      if (args_.compresses(i)) {
        entries = specs_.size();
        CacheSpec spec{1, args_.head_dim, args_.head_dim};
        spec.index_dim = args_.chooses(i) ? args_.index_dim : 0;
        if (args_.ratio(i) > 1) {
          spec.states = {{{args_.ratio(i) - 1, 2 * args_.head_dim}, mx::float32}};
        }
        specs_.push_back(spec);
      }
      layers_.push_back(
          {CompressedAttention(weights, name + ".self_attn", args_, i),
           Experts41(config, weights, name + ".mlp", args_.hidden),
           RMSNorm(weights, name + ".input_layernorm", args_.hidden, args_.eps),
           RMSNorm(weights, name + ".post_attention_layernorm", args_.hidden, args_.eps),
           HyperConnection(weights, name + ".attn_hc", args_),
           HyperConnection(weights, name + ".ffn_hc", args_),
           entries});
    }
  }

  mx::array hidden(const mx::array& ids, Caches& caches) override {
    const int count = ids.shape(0), s = args_.streams;
    auto& positions = caches.positions();
    near_.begin(positions);
    far_.begin(positions);
    auto streams = mx::repeat(mx::expand_dims(embed_tokens(ids), 1), s, 1);
    auto pre = mx::broadcast_to(mx::astype(mx::equal(mx::arange(s), mx::array(0)), mx::float32), {count, s});
    Shared shared;
    for (int i = 0; i < args_.layers; ++i) {
      auto& layer = layers_[i];
      auto first = layer.attn_hc(streams);
      auto* entries = layer.entries >= 0 ? &caches.layer(layer.entries) : nullptr;
      auto& turns = args_.ratio(i) > 0 ? far_ : near_;
      auto x = layer.input_layernorm(collapse(streams, pre));
      streams = expand(layer.self_attn(x, positions, turns, caches.layer(i), entries, shared), streams, first);
      auto second = layer.ffn_hc(streams);
      x = layer.mlp(layer.post_attention_layernorm(collapse(streams, first.pre)));
      streams = expand(x, streams, second);
      pre = second.pre;
    }
    return norm(collapse(streams, pre));
  }

  mx::array logits(const mx::array& hidden) override {
    return lm_head(hidden);
  }
  std::vector<CacheSpec> cache_specs() const override {
    return specs_;
  }
  int vocabulary() const override {
    return args_.vocabulary;
  }

 private:
  static std::vector<int> group_sizes(const Args& args) {
    std::vector<int> sizes;
    for (int i = 0; i < args.layers; ++i) {
      if (args.compresses(i)) {
        sizes.push_back(args.ratio(i));
      }
    }
    return sizes;
  }

  /** Of layers with compressed keys: YaRN of another base, without its magnitude. */
  static Rope far_rope(const Config& config, const Args& args) {
    auto own = config;
    own.json["rope_theta"] = config.number("compress_rope_theta", 160000);
    if (config.has("rope_scaling")) {
      auto scaling = config.object("rope_scaling");
      scaling.json["type"] = "yarn";
      scaling.json.erase("rope_type");
      scaling.json["mscale"] = scaling.json["mscale_all_dim"] = 0.0;
      own.json["rope_scaling"] = scaling.json;
    }
    return make_rope(own, args.rope_dim, {.traditional = true});
  }

  Args args_;
  Embedding embed_tokens;
  RMSNorm norm;
  Linear lm_head;
  Turns near_;
  Turns far_;
  std::vector<Layer> layers_;
  std::vector<CacheSpec> specs_;
};

} // namespace

std::unique_ptr<Model> make_deepseek_v41(const Config& given, Weights& weights) {
  auto config = given.has("text_config") ? given.object("text_config") : given;
  if (!config.integers("engram_layer_ids").empty()) {
    fail(Kind::invalid, "[{}] 'engram_layer_ids' names layers with n-gram memory, which can't be loaded", config.where);
  }
  from_published_v41(
      weights,
      config.count("num_hidden_layers", 40),
      config.count("o_groups", 8),
      config.count("n_routed_experts", 384));
  return std::make_unique<DeepseekV41>(config, weights);
}

} // namespace parallm
