// A decoder-only language model over a flat step: token ids of several
// sequences one after another. Which token belongs to which sequence only the
// caches know. Engine thread only.
#pragma once

#include "kv/cache.h"

#include <mlx/mlx.h>

#include <memory>
#include <string>
#include <vector>

namespace parallm {
namespace mx = mlx::core;

class Weights;
struct Config;

class Model {
 public:
  virtual ~Model() = default;
  /** ids [T] int32 -> hidden states after the last norm [T,D]. */
  virtual mx::array hidden(const mx::array& ids, Caches& caches) = 0;
  /** hidden [R,D] -> logits [R,V]. */
  virtual mx::array logits(const mx::array& hidden) = 0;
  virtual std::vector<CacheSpec> cache_specs() const = 0;
  virtual int vocabulary() const = 0;
  /** Past this length a prompt's keys depend on its length ("dynamic" RoPE), so that equal beginnings of prompts of
   *  different length have different KV. 0: never. */
  virtual int own_kv_past() const {
    return 0;
  }
};

/** Builds the model that `config`'s model_type names, from the table in
 * models.cpp. Errors: an unknown type (the text lists the known ones); missing,
 * extra or mis-shaped tensors (the text lists all of them). */
std::unique_ptr<Model> make_model(const Config& config, Weights& weights);

} // namespace parallm
