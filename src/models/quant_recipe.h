// Which layers are quantized how when a model is quantized: mlx-lm's mixed recipes (mlx_lm/convert.py) and its
// architectures' own rules (quant_predicate and cast_predicate of mlx_lm/models/*.py). Plain data; any thread.
#pragma once

#include "nn/quantization.h"

#include <optional>
#include <set>
#include <string>
#include <vector>

namespace parallm {

/** "mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6". */
std::vector<std::string> quant_recipes();

/** What each layer of one model gets. */
class QuantRules {
 public:
  /** `base`: layers that no rule names; of a recipe its group size alone counts. `recipe`: empty, or one of
   * quant_recipes(), which then stands for the architecture's rules. `layers`: all that can be quantized. Errors:
   * invalid, where a recipe doesn't fit the mode or the layers' names. */
  QuantRules(
      Quantization base,
      const std::string& recipe,
      const std::string& model_type,
      const std::vector<std::string>& layers);

  /** Nothing: the layer stays as it is. */
  std::optional<Quantization> operator()(const std::string& layer, int inputs) const;

 private:
  std::optional<Quantization> mixed(const std::string& layer) const;

  Quantization base_;
  std::string model_type_;
  std::set<int> delta_layers_; // Ling 3's, which have other layers under the same names
  int low_bits_ = 0; // 0: no recipe
  int high_bits_ = 0;
  size_t index_at_ = 0; // where a layer's number stands among its name's parts
  int layers_ = 0;
};

/** False for tensors whose precision the model needs, such as a router's bias. */
bool may_cast(const std::string& model_type, const std::string& tensor);

} // namespace parallm
