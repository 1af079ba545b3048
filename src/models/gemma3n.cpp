// Gemma 3n (Google's model card), the text part: four streams of hidden states, of
// which each layer predicts all and computes one (AltUp, arXiv 2301.13310), a
// low-rank residual beside attention (LAuReL, arXiv 2411.07501), sparse
// activations, embeddings for each layer, and keys that the last layers share.
#include "models/attention.h"
#include "models/per_layer_inputs.h"
#include "models/rope_scaling.h"
#include "models/shared_kv.h"
#include "nn/mlp.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace parallm {

namespace {

const std::string root = "model.language_model.";

struct Gemma3nArgs : Sizes {
  explicit Gemma3nArgs(const Config& config)
      : Sizes(config),
        eps(config.number("rms_norm_eps", 1e-6)),
        first_shared(num_hidden_layers - config.integer("num_kv_shared_layers", 15)),
        windows(layer_windows(config, num_hidden_layers, 5)),
        streams(config.count("altup_num_inputs", 4)),
        active(config.integer("altup_active_idx", 0)),
        coef_clip(
            config.has("altup_coef_clip") ? std::optional<float>(config.number("altup_coef_clip")) : std::nullopt),
        correct_scale(config.boolean("altup_correct_scale", true)),
        laurel_rank(config.count("laurel_rank", 64)),
        per_layer(config.count("hidden_size_per_layer_input", 256)) {}

  float eps;
  int first_shared; // layers from it on have no keys of their own
  std::vector<int> windows;
  int streams;
  int active; // the stream that a layer computes
  std::optional<float> coef_clip;
  bool correct_scale;
  int laurel_rank;
  int per_layer;
};

/** The root mean square over the last axis. */
mx::array magnitude(const mx::array& x) {
  return mx::sqrt(mx::mean(mx::square(x), -1, true));
}

/** x [A,T,D] with all streams as large as the first. */
mx::array same_magnitude(const mx::array& x) {
  auto sizes = magnitude(x);
  auto target = mx::slice(sizes, {0, 0, 0}, {1, x.shape(1), 1});
  auto factor = target / mx::maximum(sizes, mx::array(1e-5f, x.dtype()));
  auto first = mx::equal(mx::arange(x.shape(0)), mx::array(0));
  return mx::where(mx::reshape(first, {-1, 1, 1}), x, x * factor);
}

class AltUp {
 public:
  AltUp(const Gemma3nArgs& args, Weights& weights, const std::string& name)
      : args_(args),
        correct_output_scale(weights.take(name + ".correct_output_scale", {args.hidden_size}, weights.dtype())),
        correction_(coefficients(weights, name + ".correction_coefs.weight", args.streams)),
        prediction_(coefficients(weights, name + ".prediction_coefs.weight", args.streams * args.streams)),
        modality_router(weights, name + ".modality_router", args.streams, args.hidden_size),
        router_norm(weights, name + ".router_norm", args.hidden_size, args.eps) {}

  /** x [A,T,D] -> all streams after the layer, guessed. */
  mx::array predict(const mx::array& x) const {
    int a = args_.streams, count = x.shape(1);
    auto mixed = mx::matmul(modalities(active(x)), mx::transpose(prediction_)); // [T,A*A]
    auto coefs = mx::swapaxes(mx::reshape(mixed, {count, a, a}), 1, 2);
    auto wide = mx::astype(x, mx::float32);
    auto guesses = mx::matmul(mx::transpose(wide, {1, 2, 0}), coefs); // [T,D,A]
    return mx::astype(mx::transpose(guesses, {2, 0, 1}) + wide, x.dtype());
  }

  /** By how wrong the guess was of the stream that was computed. */
  mx::array correct(const mx::array& guesses, const mx::array& computed) const {
    auto coefs = mx::matmul(modalities(computed), mx::transpose(correction_)) + mx::array(1.0f); // [T,A]
    auto wrong = mx::expand_dims(computed - active(guesses), 0);
    auto corrected = wrong * mx::expand_dims(mx::transpose(coefs), 2) + guesses;
    return mx::astype(corrected, computed.dtype());
  }

  mx::array active(const mx::array& x) const {
    return mx::take(x, args_.active, 0);
  }

  mx::array scale_corrected(const mx::array& x) const {
    return args_.correct_scale ? x * correct_output_scale : x;
  }

 private:
  mx::array modalities(const mx::array& x) const {
    auto routed = modality_router(scaled(router_norm(x), 1 / float(args_.hidden_size)));
    return mx::tanh(mx::astype(routed, mx::float32));
  }

  mx::array coefficients(Weights& weights, const std::string& name, int outputs) const {
    auto stored = weights.take(name, {outputs, args_.streams}, mx::float32);
    return args_.coef_clip ? mx::clip(stored, mx::array(-*args_.coef_clip), mx::array(*args_.coef_clip)) : stored;
  }

  Gemma3nArgs args_;
  mx::array correct_output_scale; // [hidden_size]
  mx::array correction_; // [A,A]
  mx::array prediction_; // [A*A,A]
  Linear modality_router;
  RMSNorm router_norm;
};

/** x plus itself through a narrow layer. */
class Laurel {
 public:
  Laurel(const Gemma3nArgs& args, Weights& weights, const std::string& name)
      : linear_left(weights, name + ".linear_left", args.laurel_rank, args.hidden_size),
        linear_right(weights, name + ".linear_right", args.hidden_size, args.laurel_rank),
        post_laurel_norm(weights, name + ".post_laurel_norm", args.hidden_size, args.eps) {}

  mx::array operator()(const mx::array& x) const {
    return x + post_laurel_norm(linear_right(linear_left(x)));
  }

 private:
  Linear linear_left;
  Linear linear_right;
  RMSNorm post_laurel_norm;
};

/** Of the gates only the largest part counts: above mean + deviation * the normal
 * distribution's quantile of `sparsity`. */
class SparseMLP {
 public:
  SparseMLP(Weights& weights, const std::string& name, int dims, int hidden, float sparsity)
      : gate_proj(weights, name + ".gate_proj", hidden, dims),
        up_proj(weights, name + ".up_proj", hidden, dims),
        down_proj(weights, name + ".down_proj", dims, hidden) {
    if (sparsity > 0) {
      deviations_ = mx::erfinv(mx::array(2 * sparsity - 1)) * mx::array(float(std::numbers::sqrt2));
    }
  }

  mx::array operator()(const mx::array& x) const {
    auto gate = gate_proj(x);
    if (deviations_) {
      auto cutoff = mx::mean(gate, -1, true) + mx::std(gate, -1, true) * mx::astype(*deviations_, x.dtype());
      gate = mx::maximum(gate - cutoff, mx::array(0, x.dtype()));
    }
    return down_proj(gated(gelu_tanh, gate, up_proj(x)));
  }

 private:
  Linear gate_proj;
  Linear up_proj;
  Linear down_proj;
  std::optional<mx::array> deviations_;
};

class SharingAttention {
 public:
  SharingAttention(
      const Gemma3nArgs& args,
      Weights& weights,
      const std::string& name,
      const Attention& how,
      bool shares,
      std::shared_ptr<SharedKV> shared)
      : eps_(args.eps),
        how_(how),
        shares_(shares),
        shared_(std::move(shared)),
        project(weights, name, args), // a layer that shares has all of them in the file, too
        q_norm(weights, name + ".q_norm", args.head_dim, args.eps),
        k_norm(weights, name + ".k_norm", args.head_dim, args.eps) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto [q, k, v] = project(x);
    if (shares_) {
      return project.out(shared_->attend(q_norm(q), how_));
    }
    return project.out(shared_->attend(q_norm(q), k_norm(k), rms_norm(v, eps_), cache, how_));
  }

 private:
  float eps_;
  Attention how_;
  bool shares_;
  std::shared_ptr<SharedKV> shared_;
  Projections project;
  RMSNorm q_norm;
  RMSNorm k_norm;
};

/** x [A,T,D] -> [A,T,D]. */
class Block {
 public:
  Block(
      const Gemma3nArgs& args,
      Weights& weights,
      const std::string& name,
      SharingAttention attend,
      SparseMLP mlp,
      std::function<mx::array(const mx::array&)> mix_in)
      : self_attn(std::move(attend)),
        mlp_(std::move(mlp)),
        mix_in_(std::move(mix_in)),
        altup(args, weights, name + ".altup"),
        laurel(args, weights, name + ".laurel"),
        input_layernorm(weights, name + ".input_layernorm", args.hidden_size, args.eps),
        post_attention_layernorm(weights, name + ".post_attention_layernorm", args.hidden_size, args.eps),
        pre_feedforward_layernorm(weights, name + ".pre_feedforward_layernorm", args.hidden_size, args.eps),
        post_feedforward_layernorm(weights, name + ".post_feedforward_layernorm", args.hidden_size, args.eps) {}

  mx::array operator()(const mx::array& x, Cache& cache) const {
    auto guesses = altup.predict(x);
    auto guess = altup.active(guesses);
    auto normed = input_layernorm(guess);
    auto attended = guess + post_attention_layernorm(self_attn(normed, cache));
    auto h = scaled(attended + laurel(normed), std::numbers::sqrt2 / 2);
    h = h + post_feedforward_layernorm(mlp_(pre_feedforward_layernorm(h)));
    auto corrected = altup.correct(guesses, h);
    auto added = mx::expand_dims(mix_in_(altup.scale_corrected(altup.active(corrected))), 0);
    auto parts = mx::split(corrected, mx::Shape{1}, 0);
    return mx::concatenate({parts[0], parts[1] + added}, 0); // to all but the first stream
  }

 private:
  SharingAttention self_attn;
  SparseMLP mlp_;
  std::function<mx::array(const mx::array&)> mix_in_;
  AltUp altup;
  Laurel laurel;
  RMSNorm input_layernorm;
  RMSNorm post_attention_layernorm;
  RMSNorm pre_feedforward_layernorm;
  RMSNorm post_feedforward_layernorm;
};

/** `altup_projections` or their inverse, one for each stream but the first. */
std::vector<Linear> stream_projections(const Gemma3nArgs& args, Weights& weights, const std::string& name) {
  std::vector<Linear> out;
  for (int i = 0; i + 1 < args.streams; ++i) {
    out.emplace_back(weights, fmt::format("{}.{}", name, i), args.hidden_size, args.hidden_size);
  }
  return out;
}

/** The embedding to streams, and the streams to what the output layer gets. */
void add_ends(PerLayerDecoder& model, const Gemma3nArgs& args, const Config& config, Weights& weights) {
  auto projections = stream_projections(args, weights, root + "altup_projections");
  PerLayerInputs inputs(config, weights, root, args.eps);
  model.embedded = [=, step = model.step](const mx::array& x, Caches&) {
    auto h = scaled(x, std::sqrt(float(args.hidden_size)));
    step->per_layer = inputs(step->ids.value(), h);
    std::vector<mx::array> streams = {h};
    for (auto& project : projections) {
      streams.push_back(project(h));
    }
    return same_magnitude(mx::stack(streams, 0));
  };
  auto back = stream_projections(args, weights, root + "altup_unembed_projections");
  RMSNorm norm(weights, root + "norm", args.hidden_size, args.eps);
  model.norm = [=](const mx::array& x) {
    std::vector<mx::array> streams = {mx::take(x, 0, 0)};
    for (size_t i = 0; i < back.size(); ++i) {
      streams.push_back(back[i](mx::take(x, int(i) + 1, 0)));
    }
    return norm(mx::mean(same_magnitude(mx::stack(streams, 0)), 0));
  };
}

} // namespace

std::unique_ptr<Model> make_gemma3n(const Config& outer, Weights& weights) {
  auto config = outer.object("text_config");
  require_text(config, "hidden_activation", "gelu_pytorch_tanh");
  for (auto* other : {"vision_tower.", "audio_tower.", "embed_audio.", "embed_vision."}) {
    weights.ignore(std::string("model.") + other);
  }
  weights.ignore("lm_head."); // tied
  auto hidden = config.integers("intermediate_size"); // one for all layers or for each
  config.json["intermediate_size"] = hidden.empty() ? 0 : hidden[0];
  Gemma3nArgs args(config);
  hidden.resize(args.num_hidden_layers, hidden[0]);
  auto sparsity =
      config.has("activation_sparsity_pattern") ? config.numbers("activation_sparsity_pattern") : std::vector<double>();
  sparsity.resize(args.num_hidden_layers, 0);

  auto model = std::make_unique<PerLayerDecoder>(weights, root + "embed_tokens", args);
  auto* full = model->keep(
      has_rope_of(config, "full_attention") ? make_rope(config, args.head_dim, {.layer_type = "full_attention"})
                                            : plain_rope(args.head_dim, config.number("rope_theta", 1e6)));
  auto* sliding = model->keep(
      has_rope_of(config, "sliding_attention")
          ? make_rope(config, args.head_dim, {.layer_type = "sliding_attention"})
          : plain_rope(args.head_dim, config.number("rope_local_base_freq", 10000)));
  auto full_kv = std::make_shared<SharedKV>(), sliding_kv = std::make_shared<SharedKV>();
  for (int i = 0; i < args.num_hidden_layers; ++i) {
    auto name = fmt::format("{}layers.{}", root, i);
    bool slides = args.windows[i] > 0, shares = i >= args.first_shared;
    Attention how{.scale = 1, .rope = slides ? sliding : full, .window = args.windows[i], .sinks = {}};
    SharingAttention attend(args, weights, name + ".self_attn", how, shares, slides ? sliding_kv : full_kv);
    SparseMLP mlp(weights, name + ".mlp", args.hidden_size, hidden[i], sparsity[i]);
    PerLayerGate gate(weights, name, args.hidden_size, args.per_layer, args.eps);
    auto mix_in = [=, step = model->step](const mx::array& x) { return gate(x, step->per_layer.value(), i); };
    model->add(Block(args, weights, name, attend, mlp, mix_in), shares ? CacheSpec{} : args.cache());
  }
  add_ends(*model, args, config, weights);
  if (config.has("final_logit_softcapping")) {
    float cap = config.number("final_logit_softcapping");
    model->scored = [cap](const mx::array& x) { return softcapped(x, cap); };
  }
  return model;
}

} // namespace parallm
