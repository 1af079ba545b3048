// A GGUF tensor as MLX's arrays: mapped where its layout is MLX's already, else repacked (gguf_types.h has the rules)
// straight from the mapped file, whose pages are dropped afterwards, so that loading holds one copy of the weights and
// a tensor's worth more. Engine thread only.
#pragma once

#include "models/gguf_reader.h"
#include "nn/weights.h"

#include <optional>
#include <vector>

namespace parallm {

struct GgufArrays {
  mx::array weight; // dense, or packed codes
  std::optional<mx::array> scales;
  std::optional<mx::array> biases; // affine
  std::optional<Quantization> quantization;
};

struct GgufReading {
  bool groups_of_16; // the layers' kernels take them
  /** Rows (of the tensor seen as [.., inputs]) in this order: row r is the file's row order[r]. Empty: the file's. */
  std::vector<int> order;
};

GgufArrays read_gguf_tensor(const GgufTensor& tensor, const GgufReading& reading);

/** Any kind as float32. */
mx::array dequantize_gguf(const GgufTensor& tensor);

} // namespace parallm
