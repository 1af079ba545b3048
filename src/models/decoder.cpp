#include "models/decoder.h"

#include "base/error.h"

#include <algorithm>

namespace parallm {

Sizes::Sizes(const Config& config)
    : hidden_size(config.count("hidden_size")),
      num_hidden_layers(config.count("num_hidden_layers")),
      intermediate_size(config.count("intermediate_size")),
      num_attention_heads(config.count("num_attention_heads")),
      num_key_value_heads(config.count("num_key_value_heads", num_attention_heads)),
      head_dim(config.count("head_dim", std::max(hidden_size / num_attention_heads, 1))),
      vocab_size(config.count("vocab_size")) {
  if (num_attention_heads % num_key_value_heads != 0) {
    fail(
        Kind::invalid,
        "[{}] 'num_attention_heads' must be a multiple of 'num_key_value_heads'; got {} and {}",
        config.where,
        num_attention_heads,
        num_key_value_heads);
  }
}

std::vector<int> layer_windows(const Config& config, int layers, int pattern) {
  std::vector<int> windows(layers, 0);
  if (!config.has("layer_types")) {
    for (int i = 0; pattern > 0 && i < layers; ++i) {
      windows[i] = (i + 1) % pattern != 0 ? config.count("sliding_window") : 0;
    }
    return windows;
  }
  auto types = config.texts("layer_types");
  if (int(types.size()) != layers) {
    fail(Kind::invalid, "[{}] 'layer_types' must name {} layers; got {}", config.where, layers, types.size());
  }
  for (int i = 0; i < layers; ++i) {
    if (types[i] == "sliding_attention") {
      windows[i] = config.count("sliding_window");
    } else if (types[i] != "full_attention") {
      fail(
          Kind::invalid,
          "[{}] 'layer_types' may hold full_attention and sliding_attention; got '{}'",
          config.where,
          types[i]);
    }
  }
  return windows;
}

std::vector<int> same_windows(const Config& config, int layers) {
  return std::vector<int>(layers, config.has("sliding_window") ? config.count("sliding_window") : 0);
}

std::vector<int> late_windows(const Config& config, int layers) {
  if (!config.boolean("use_sliding_window", false) || !config.has("sliding_window")) {
    return std::vector<int>(layers, 0); // also where `layer_types` stands: transformers ignores its windows then
  }
  if (config.has("layer_types")) {
    return layer_windows(config, layers);
  }
  std::vector<int> windows(layers, 0);
  for (int i = std::max(config.integer("max_window_layers", layers), 0); i < layers; ++i) {
    windows.at(i) = config.count("sliding_window");
  }
  return windows;
}

void require_text(const Config& config, const std::string& field, const std::string& wanted) {
  auto got = config.text(field, wanted);
  if (got != wanted) {
    fail(Kind::invalid, "[{}] '{}' must be {}; got '{}'", config.where, field, wanted, got);
  }
}

void require_off(const Config& config, const std::string& field) {
  if (config.boolean(field, false)) {
    fail(Kind::invalid, "[{}] '{}' must be false; got true", config.where, field);
  }
}

const Rope* Decoder::keep(Rope rope) {
  return ropes_.emplace_back(std::make_unique<const Rope>(std::move(rope))).get();
}

void Decoder::add(Block block, CacheSpec spec) {
  blocks_.push_back(std::move(block));
  specs_.push_back(std::move(spec));
}

mx::array Decoder::hidden(const mx::array& ids, Caches& caches) {
  auto h = embedding_(ids);
  if (embedded) {
    h = embedded(h, caches);
  }
  for (size_t i = 0; i < blocks_.size(); ++i) {
    h = blocks_[i](h, caches.layer(i));
  }
  return norm(h);
}

mx::array Decoder::logits(const mx::array& hidden) {
  auto out = head ? (*head)(hidden) : embedding_.as_linear(hidden);
  return scored ? scored(out) : out;
}

int Decoder::own_kv_past() const {
  int past = 0; // where the first of "dynamic" ropes begins to grow
  for (auto& rope : ropes_) {
    if (rope->original_length > 0) {
      past = past == 0 ? rope->original_length : std::min(past, rope->original_length);
    }
  }
  return past;
}

mx::array scaled(const mx::array& x, float factor) {
  return x * mx::array(factor, x.dtype());
}

mx::array softcapped(const mx::array& x, float cap) {
  return mx::tanh(x / mx::array(cap, x.dtype())) * mx::array(cap, x.dtype());
}

} // namespace parallm
