// The frame that most decoders share: an embedding, layers, a last norm, a head.
// A model's file makes the parts, which read like its paper, and hands them over.
// Engine thread only.
#pragma once

#include "models/config.h"
#include "models/model.h"
#include "nn/embedding.h"
#include "nn/linear.h"

#include <functional>
#include <optional>

namespace parallm {

/** x [T,D] -> [T,D], by its layer's cache. */
using Attend = std::function<mx::array(const mx::array& x, Cache& cache)>;
/** x [T,D] -> [T,D]. */
using Map = std::function<mx::array(const mx::array& x)>;

struct DecoderLayer {
  Attend run; // the whole layer, residual and all
  CacheSpec cache;
};

struct DecoderParts {
  int vocabulary;
  Embedding embedding;
  std::vector<DecoderLayer> layers;
  Map norm;
  std::optional<Linear> head; // none: the embedding is the head
  float embedding_scale = 1;
  float logits_scale = 1;
  int own_kv_past = 0; // Model::own_kv_past
};

std::unique_ptr<Model> make_decoder(DecoderParts parts);

/** h = x + attend(norm(x)), then h + feed_forward(norm(h)), with RMS norms under
 * their usual names. `residual_scale`: on what is added (Granite, MiniCPM). */
Attend pre_norm_block(
    Weights& weights,
    const std::string& name,
    int dims,
    float eps,
    Attend attend,
    Map feed_forward,
    float residual_scale = 1);

/** The parts under the usual names: model.embed_tokens, model.norm (RMS),
 * lm_head; layers are the caller's. */
DecoderParts usual_parts(const Config& config, Weights& weights, int dims, float eps);

/** Each layer's window by `layer_types`: `sliding_window` where it is
 * sliding_attention, 0 where full_attention. Errors: another type, another
 * number of layers. */
std::vector<int> layer_windows(const Config& config, int layers);

/** `config` with a number where the field is absent: where a model's default is
 * not the one of those who read it. */
Config with_default(Config config, const char* field, double value);

/** Errors: invalid, where `field` is there and is another text. */
void require_text(const Config& config, const char* field, const char* wanted);

} // namespace parallm
