#include "models/rope_scaling.h"

#include "base/error.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace parallm {

namespace {

using Frequencies = std::vector<double>; // radians a position

/** What each kind of scaling reads and edits. */
struct Scaling {
  const Config& config; // the whole model's
  const Config& options; // rope_scaling
  int head_dim;
  Rope& rope;
  Frequencies& frequencies;
};

void scale_default(Scaling&) {}

void scale_linear(Scaling& s) {
  double factor = s.options.number("factor");
  for (auto& frequency : s.frequencies) {
    frequency /= factor;
  }
}

/** _compute_dynamic_ntk_parameters; the growth itself is in Rope::tables. */
void scale_dynamic(Scaling& s) {
  s.rope.factor = s.options.number("factor");
  s.rope.original_length =
      s.options.count("original_max_position_embeddings", s.config.count("max_position_embeddings", 2048));
}

/** _compute_llama3_parameters: long waves are stretched, short ones kept, those
 * between blended. */
void scale_llama3(Scaling& s) {
  double factor = s.options.number("factor");
  double low = s.options.number("low_freq_factor", 1.0);
  double high = s.options.number("high_freq_factor", 4.0);
  double length = s.options.count("original_max_position_embeddings", 8192);
  for (auto& frequency : s.frequencies) {
    double wave = 2 * std::numbers::pi / frequency;
    if (wave > length / low) {
      frequency /= factor;
    } else if (wave > length / high) {
      double keep = (length / wave - low) / (high - low);
      frequency = (1 - keep) * frequency / factor + keep * frequency;
    }
  }
}

double yarn_magnitude(double factor, double scale) {
  return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

/** _compute_yarn_parameters (YaRN, arXiv 2309.00071). */
void scale_yarn(Scaling& s) {
  auto& o = s.options;
  double factor = o.number("factor");
  double length = o.count("original_max_position_embeddings", 4096);
  if (o.has("attention_factor")) {
    s.rope.magnitude = o.number("attention_factor");
  } else { // DeepSeek's form; without either it is YaRN's own
    double mscale = o.number("mscale", 1), mscale_all_dim = o.number("mscale_all_dim", 0);
    s.rope.magnitude = yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim);
  }

  int dims = s.rope.dims;
  auto dimension = [&](double rotations) { // that turns so often in `length`
    return dims * std::log(length / (rotations * 2 * std::numbers::pi)) / (2 * std::log(s.rope.base));
  };
  double low = dimension(o.number("beta_fast", 32));
  double high = dimension(o.number("beta_slow", 1));
  if (o.boolean("truncate", true)) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dims - 1.0);
  if (low == high) {
    high += 0.001;
  }
  for (int i = 0; i < dims / 2; ++i) {
    double stretched = std::clamp((i - low) / (high - low), 0.0, 1.0);
    double frequency = s.frequencies[i];
    s.frequencies[i] = stretched * frequency / factor + (1 - stretched) * frequency;
  }
}

void scale_by_factors(Scaling& s) {
  auto factors = s.options.numbers("factors");
  if (factors.size() != s.frequencies.size()) {
    fail(Kind::invalid, "[make_rope] 'factors' must hold {} numbers; got {}", s.frequencies.size(), factors.size());
  }
  for (size_t i = 0; i < factors.size(); ++i) {
    s.frequencies[i] /= factors[i];
  }
}

/** Phi-3's (LongRoPE, arXiv 2402.13753). As mlx-lm's SuScaledRoPE: the long
 * factors at any length, where transformers takes the short ones for sequences
 * within the original length (and so for the first tokens of a longer one). */
void scale_longrope(Scaling& s) {
  auto factors = s.options.numbers("long_factor");
  if (factors.size() != s.frequencies.size()) {
    fail(Kind::invalid, "[make_rope] 'long_factor' must hold {} numbers; got {}", s.frequencies.size(), factors.size());
  }
  for (size_t i = 0; i < factors.size(); ++i) {
    s.frequencies[i] /= factors[i];
  }
  double original =
      s.options.count("original_max_position_embeddings", s.config.count("original_max_position_embeddings", 4096));
  double growth = s.config.count("max_position_embeddings", 131072) / original;
  if (s.options.has("attention_factor")) {
    s.rope.magnitude = s.options.number("attention_factor");
  } else if (s.options.has("long_mscale")) {
    s.rope.magnitude = s.options.number("long_mscale");
  } else if (growth > 1) {
    s.rope.magnitude = std::sqrt(1 + std::log(growth) / std::log(original));
  }
}

/** Gemma 4's: pairs lie as if all dims were rotated, but only the first
 * frequencies turn. */
void scale_proportional(Scaling& s) {
  int rotated = s.rope.dims;
  s.rope.dims = s.head_dim;
  double factor = s.options.number("factor", 1);
  s.frequencies.assign(s.head_dim / 2, 0);
  for (int i = 0; i < rotated / 2; ++i) {
    s.frequencies[i] = std::pow(s.rope.base, -2.0 * i / s.head_dim) / factor;
  }
}

constexpr struct {
  const char* type;
  void (*scale)(Scaling&);
} kinds[] = {
    {"default", scale_default},
    {"linear", scale_linear},
    {"dynamic", scale_dynamic},
    {"llama3", scale_llama3},
    {"yarn", scale_yarn},
    {"deepseek_yarn", scale_yarn},
    {"telechat3-yarn", scale_yarn},
    {"longrope", scale_longrope},
    {"su", scale_longrope},
    {"mrope", scale_default}, // of text: all three positions are the same
    {"proportional", scale_proportional},
    {"frequency_factors", scale_by_factors},
};

Config rope_options(const Config& config, const std::string& layer_type) {
  if (has_rope_of(config, layer_type)) {
    return config.object("rope_parameters").object(layer_type);
  }
  for (auto name : {"rope_scaling", "rope_parameters"}) {
    if (config.has(name)) {
      return config.object(name);
    }
  }
  return {};
}

} // namespace

std::vector<bool> rotating_layers(const Config& config, const std::vector<int>& windows) {
  std::vector<bool> rotates;
  for (int window : windows) {
    rotates.push_back(window > 0);
  }
  if (config.has("layer_rope_theta")) {
    auto thetas = config.numbers("layer_rope_theta");
    if (thetas.size() != windows.size()) {
      fail(
          Kind::invalid,
          "[{}] 'layer_rope_theta' must hold {} numbers; got {}",
          config.where,
          windows.size(),
          thetas.size());
    }
    for (size_t i = 0; i < thetas.size(); ++i) {
      rotates[i] = thetas[i] != 0;
    }
  }
  return rotates;
}

bool has_rope_of(const Config& config, const std::string& layer_type) {
  return config.has("rope_parameters") && config.object("rope_parameters").has(layer_type);
}

Rope plain_rope(int dims, double theta, bool traditional) {
  Rope rope;
  rope.dims = dims;
  rope.base = theta;
  rope.traditional = traditional;
  for (int i = 0; i < dims; i += 2) {
    rope.inverse_frequencies.push_back(std::pow(theta, -double(i) / dims));
  }
  return rope;
}

Rope make_rope(const Config& config, int head_dim, const RopeDefaults& defaults) {
  auto options = rope_options(config, defaults.layer_type);
  auto type = options.text("rope_type", options.text("type", "default"));
  auto partial = options.number("partial_rotary_factor", config.number("partial_rotary_factor", defaults.partial));

  Rope rope;
  rope.dims = static_cast<int>(head_dim * partial);
  if (rope.dims <= 0 || rope.dims % 2 != 0 || rope.dims > head_dim) {
    fail(Kind::invalid, "[make_rope] rotated dims must be even and within head_dim {}; got {}", head_dim, rope.dims);
  }
  rope.base = options.number("rope_theta", config.number("rope_theta", defaults.theta));
  rope.traditional = config.boolean("rope_traditional", defaults.traditional);

  Frequencies frequencies;
  for (int i = 0; i < rope.dims; i += 2) {
    frequencies.push_back(std::pow(rope.base, -double(i) / rope.dims));
  }
  auto* kind = std::find_if(std::begin(kinds), std::end(kinds), [&](auto& k) { return k.type == type; });
  if (kind == std::end(kinds)) {
    std::string known;
    for (auto& k : kinds) {
      known += (known.empty() ? "" : ", ") + std::string(k.type);
    }
    fail(Kind::invalid, "[make_rope] rope type must be one of {}; got '{}'", known, type);
  }
  Scaling scaling{config, options, head_dim, rope, frequencies};
  kind->scale(scaling);
  rope.inverse_frequencies.assign(frequencies.begin(), frequencies.end());
  return rope;
}

} // namespace parallm
