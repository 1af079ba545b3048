// Qwen3.5 in 2 bits, layers with rotated inputs among them: config.json's `modules`
// says of each how long the rotation's blocks are.
#include "base/error.h"
#include "models/config.h"
#include "models/model.h"
#include "nn/weights.h"

#include <boost/json/array.hpp>

namespace parallm {

std::unique_ptr<Model> make_qwen3_5(const Config& config, Weights& weights);

std::unique_ptr<Model> make_prism_hadamard_qwen35(const Config& config, Weights& weights) {
  if (auto layout = config.text("gdn_activation_layout", "grouped"); layout != "grouped") {
    fail(Kind::invalid, "[{}] 'gdn_activation_layout' must be grouped; got '{}'", config.where, layout);
  }
  for (auto& module : config.objects("modules")) {
    auto path = module.text("path");
    int block = module.integer("block");
    if (block != 0 && (block < 512 || block > 8192 || (block & (block - 1)) != 0)) {
      fail(
          Kind::invalid,
          "[{}] 'block' of {} must be 0 or a power of 2 from 512 to 8192; got {}",
          config.where,
          path,
          block);
    }
    if (block != 0) {
      weights.rotate(path, block);
    }
  }
  return make_qwen3_5(config, weights);
}

} // namespace parallm
