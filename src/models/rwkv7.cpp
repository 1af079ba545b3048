// RWKV-7 "Goose" (arXiv 2503.14456): no attention; each head keeps a matrix that it
// decays, corrects and adds to a token at a time, and each token is mixed with the
// one before.
#include "models/decoder.h"
#include "nn/activation.h"
#include "nn/norm.h"
#include "nn/recurrent.h"

#include <cmath>

namespace parallm {

namespace {

struct RwkvArgs {
  explicit RwkvArgs(const Config& config)
      : hidden_size(config.count("hidden_size")),
        head_dim(config.count("head_dim", 64)),
        heads(hidden_size / head_dim),
        intermediate_size(config.count("intermediate_size", 4 * hidden_size)),
        norm_eps(config.number("norm_eps", 1e-5)),
        decay_low_rank_dim(config.count("decay_low_rank_dim")),
        gate_low_rank_dim(config.count("gate_low_rank_dim")),
        a_low_rank_dim(config.count("a_low_rank_dim")),
        v_low_rank_dim(config.count("v_low_rank_dim")) {}

  int hidden_size;
  int head_dim;
  int heads;
  int intermediate_size;
  float norm_eps;
  int decay_low_rank_dim;
  int gate_low_rank_dim;
  int a_low_rank_dim;
  int v_low_rank_dim;

  CacheSpec cache(mx::Dtype dtype) const {
    StateSpec last{{1, hidden_size}, dtype};
    return {.states = {last, {{heads, head_dim, head_dim}, mx::float32}, last}};
  }
};

/** The token before each of x [B,L,D]; `state` [B,1,D] keeps the last. */
mx::array shifted(const mx::array& x, mx::array& state) {
  int rows = x.shape(0), length = x.shape(1), width = x.shape(2);
  auto all = mx::concatenate({state, x}, 1);
  state = mx::slice(all, {0, length, 0}, {rows, length + 1, width});
  return mx::slice(all, {0, 0, 0}, {rows, length, width});
}

/** x [B,L,..] as [B*L,..], which linear layers take. */
mx::array flat(const mx::array& x) {
  return mx::flatten(x, 0, 1);
}

/** A tensor, whatever its axes, as `shape`: Hugging Face's are flat. */
mx::array take_as(Weights& weights, const std::string& name, const mx::Shape& shape) {
  if (auto stored = weights.pull(name)) {
    size_t size = 1;
    for (auto dim : shape) {
      size *= dim;
    }
    weights.put(name, stored->size() == size ? mx::reshape(*stored, shape) : *stored);
  }
  return weights.take(name, shape, weights.dtype());
}

/** Through a narrow layer. */
class LowRank {
 public:
  LowRank(Weights& weights, const std::string& name, int dims, int rank, Activation act, bool bias)
      : act_(act), down(weights, name + ".lora.0", rank, dims), up(weights, name + ".lora.2", dims, rank, bias) {}

  mx::array operator()(const mx::array& x) const {
    auto narrow = down(x);
    return up(act_ ? act_(narrow) : narrow);
  }

 private:
  Activation act_;
  Linear down;
  Linear up;
};

class TimeMixing {
 public:
  TimeMixing(const RwkvArgs& args, Weights& weights, const std::string& name, bool first)
      : args_(args),
        r_proj(weights, name + ".r_proj", args.hidden_size, args.hidden_size),
        k_proj(weights, name + ".k_proj", args.hidden_size, args.hidden_size),
        v_proj(weights, name + ".v_proj", args.hidden_size, args.hidden_size),
        o_proj(weights, name + ".o_proj", args.hidden_size, args.hidden_size),
        w_lora(weights, name + ".w_lora", args.hidden_size, args.decay_low_rank_dim, tanh, true),
        a_lora(weights, name + ".a_lora", args.hidden_size, args.a_low_rank_dim, nullptr, true),
        g_lora(weights, name + ".g_lora", args.hidden_size, args.gate_low_rank_dim, sigmoid, false),
        k_k(take_as(weights, name + ".k_k", {args.heads, args.head_dim})),
        k_a(take_as(weights, name + ".k_a", {args.heads, args.head_dim})),
        r_k(take_as(weights, name + ".r_k", {args.heads, args.head_dim})),
        g_norm_weight(take_as(weights, name + ".g_norm.weight", {args.heads, args.head_dim})),
        g_norm_bias(take_as(weights, name + ".g_norm.bias", {args.heads, args.head_dim})) {
    if (!first) {
      v_lora.emplace(weights, name + ".v_lora", args.hidden_size, args.v_low_rank_dim, nullptr, true);
    }
    for (auto* of : {".x_r", ".x_w", ".x_k", ".x_v", ".x_a", ".x_g"}) {
      shifts_.push_back(take_as(weights, name + of, {1, 1, args.hidden_size}));
    }
  }

  struct Out {
    mx::array y; // [B,L,D]
    mx::array v; // [B,L,H,head_dim]
  };
  /** x [B,L,D]; v_first: the first layer's values, which it has not. */
  Out operator()(const mx::array& x, const std::optional<mx::array>& v_first, std::vector<mx::array>& states) const {
    auto tokens = flat(x), change = flat(shifted(x, states[0])) - tokens;
    auto mixed = [&](int i) { return tokens + change * mx::flatten(shifts_[i]); };
    auto by_head = [&](const mx::array& y) { return mx::reshape(y, {y.shape(0), args_.heads, args_.head_dim}); };
    auto r = by_head(r_proj(mixed(0))), k = by_head(k_proj(mixed(2))), v = by_head(v_proj(mixed(3)));
    auto rate = by_head(mx::sigmoid(a_lora(mixed(4)))); // of correcting, in context
    if (v_first) {
      v = v + (flat(*v_first) - v) * by_head(mx::sigmoid((*v_lora)(mixed(3))));
    }
    auto one = mx::array(1, x.dtype());
    auto slow = mx::sigmoid(mx::astype(by_head(w_lora(mixed(1))), mx::float32));
    auto removed = k * k_k;
    removed = removed / mx::maximum(mx::sqrt(mx::sum(mx::square(removed), -1, true)), mx::array(1e-7f, x.dtype()));
    k = k * (one + (rate - one) * k_a);
    mx::Shape sequences{x.shape(0), x.shape(1), args_.heads, args_.head_dim};
    const auto in_sequences = [&](const mx::array& y) { return mx::reshape(y, sequences); };
    LinearRecurrence in{
        .q = in_sequences(r),
        .k = in_sequences(k),
        .v = in_sequences(v),
        .log_decay = in_sequences(slow * mx::array(-0.606531f)), // e^(-1/2)
        .read = in_sequences(mx::negative(removed)),
        .write = in_sequences(removed * rate)};
    auto out = flat(linear_recurrence(in, states[1]));
    out = g_norm_weight * mx::fast::layer_norm(out, {}, {}, 64e-5f) + g_norm_bias;
    out = out + mx::sum(r * k * r_k, -1, true) * v;
    auto y = o_proj(mx::flatten(out, 1, 2) * g_lora(mixed(5)));
    return {mx::reshape(y, x.shape()), mx::reshape(v, sequences)};
  }

 private:
  static mx::array tanh(const mx::array& x) {
    return mx::tanh(x);
  }
  static mx::array sigmoid(const mx::array& x) {
    return mx::sigmoid(x);
  }

  RwkvArgs args_;
  Linear r_proj;
  Linear k_proj;
  Linear v_proj;
  Linear o_proj;
  LowRank w_lora; // the decay
  LowRank a_lora;
  LowRank g_lora; // the output's gate
  std::optional<LowRank> v_lora; // how much of the first layer's values
  mx::array k_k;
  mx::array k_a;
  mx::array r_k;
  mx::array g_norm_weight;
  mx::array g_norm_bias;
  std::vector<mx::array> shifts_; // [1,1,hidden_size] each: r, w, k, v, a, g
};

class ChannelMixing {
 public:
  ChannelMixing(const RwkvArgs& args, Weights& weights, const std::string& name)
      : key(weights, name + ".key", args.intermediate_size, args.hidden_size),
        value(weights, name + ".value", args.hidden_size, args.intermediate_size),
        x_k(take_as(weights, name + ".x_k", {args.hidden_size})) {}

  mx::array operator()(const mx::array& x, std::vector<mx::array>& states) const {
    auto tokens = flat(x), before = flat(shifted(x, states[2]));
    return mx::reshape(value(relu_squared(key(tokens + (before - tokens) * x_k))), x.shape());
  }

 private:
  Linear key;
  Linear value;
  mx::array x_k;
};

} // namespace

std::unique_ptr<Model> make_rwkv7(const Config& config, Weights& weights) {
  require_text(config, "hidden_act", "sqrelu");
  RwkvArgs args(config);
  int dims = args.hidden_size, vocabulary = config.count("vocab_size");
  auto model = std::make_unique<Decoder>(Embedding(weights, "model.embeddings", vocabulary, dims), vocabulary);
  auto v_first = std::make_shared<std::optional<mx::array>>(); // the first layer's values, in the step
  for (int i = 0; i < config.count("num_hidden_layers"); ++i) {
    auto name = fmt::format("model.layers.{}", i);
    std::optional<LayerNorm> pre_norm;
    if (i == 0) {
      pre_norm.emplace(weights, name + ".pre_norm", dims, args.norm_eps, true);
    }
    LayerNorm attn_norm(weights, name + ".attn_norm", dims, args.norm_eps, true);
    TimeMixing attn(args, weights, name + ".attn", i == 0);
    LayerNorm ffn_norm(weights, name + ".ffn_norm", dims, args.norm_eps, true);
    ChannelMixing ffn(args, weights, name + ".ffn");
    // A layer's states are all read and written at once: the whole block is one recurrence.
    auto block = [=](const mx::array& x, Cache& cache) {
      std::vector<mx::array> inputs = {pre_norm ? (*pre_norm)(x) : x};
      if (!pre_norm) {
        inputs.push_back(v_first->value());
      }
      auto out = cache.recur(inputs, [&](auto& in, auto& states) {
        auto [y, v] = attn(attn_norm(in[0]), in.size() > 1 ? std::optional(in[1]) : std::nullopt, states);
        auto h = in[0] + y;
        h = h + ffn(ffn_norm(h), states);
        return mx::concatenate({h, mx::flatten(v, 2, 3)}, 2);
      });
      auto parts = mx::split(out, 2, 1); // the hidden state, the values
      if (pre_norm) {
        *v_first = mx::reshape(parts[1], {x.shape(0), args.heads, args.head_dim});
      }
      return parts[0];
    };
    model->add(block, args.cache(weights.dtype()));
  }
  model->norm = LayerNorm(weights, "model.norm", dims, args.norm_eps, true);
  model->head = untied_head(config, weights, vocabulary, dims);
  return model;
}

} // namespace parallm
