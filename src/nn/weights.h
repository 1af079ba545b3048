// A checkpoint's tensors by name. Layers take what they need; `finish` then
// says at once everything that was missing, left over or of another shape.
// Quantized layers are MLX's: `<name>.weight` holds packed codes,
// `<name>.scales` and (affine) `<name>.biases` one number a group, and (nvfp4)
// `<name>.global_scale` may hold one for all (mlx/ops.h, `quantize`). Engine thread only.
#pragma once

#include "nn/quantization.h"

#include <mlx/mlx.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

namespace parallm {
namespace mx = mlx::core;

/** What a model took, under its own names: what `convert` writes. */
struct Recording {
  struct Tensor {
    std::string name;
    mx::array array; // as the checkpoint holds it
  };
  std::vector<Tensor> tensors; // in the order in which the model took them
  /** The layers that can be quantized, and how those are that are. */
  std::map<std::string, std::optional<Quantization>> layers;
};

class Weights {
 public:
  /** `dtype`: the activations'. */
  Weights(std::unordered_map<std::string, mx::array> arrays, Quantizations quantizations, mx::Dtype dtype);

  bool has(const std::string& name) const;
  /** Where `<layer>.scales` exists and config.json doesn't deny it. For a layer
   * that config.json doesn't name, the tensors tell; `inputs` is its width. To
   * ask says that the layer can be quantized. */
  std::optional<Quantization> quantization(const std::string& layer, int inputs);
  /** The same of a layer that is only a form in the file, which is `pull`ed. */
  std::optional<Quantization> stored_quantization(const std::string& layer, int inputs) const;
  /** Hands out the tensor, once, cast to `as` where given. Where it is missing
   * or has another shape, that is noted for `finish` and the result is a
   * stand-in of the wanted shape. */
  mx::array take(const std::string& name, mx::Shape shape, std::optional<mx::Dtype> as = {});
  /** Tensors whose names begin so are no error when nobody takes them. */
  void ignore(std::string prefix);

  // A checkpoint's own layout to the one that a model's layers ask for, before
  // they do. Nothing happens where there is nothing of that name.

  /** Names that begin with `from` begin with `to`. Where both exist, that is an
   * error of `finish`. */
  void rename(const std::string& from, const std::string& to);
  /** Layers `<pattern>`, whose "{}" counts from 0 to count - 1, to one layer `to`
   * whose tensors (weight, scales, biases, global_scale, bias) are theirs, stacked. */
  void stack(const std::string& pattern, int count, const std::string& to);
  /** Takes a tensor out, for `put` to give it back in another form. */
  std::optional<mx::array> pull(const std::string& name);
  void put(const std::string& name, mx::array array);
  /** `<layer>.weight`, quantized as it says. */
  void put_quantized(const std::string& layer, const mx::array& weight, const Quantization& how);
  /** The names that end so, in order. */
  std::vector<std::string> names_ending(std::string_view suffix) const;
  /** `layer`'s inputs are rotated in blocks, by `<layer>.signs`, before its weights
   * meet them (nn/rotation.h). */
  void rotate(const std::string& layer, int block);
  /** 0: none. */
  int rotation_block(const std::string& layer) const;
  /** From now on `to` is told what is taken, and `finish` reads nothing into
   * memory. */
  void record(Recording& to);
  /** Before a layer is split into `parts`: a recording gets it whole, as it lies
   * here, and none of them. */
  void record_whole(const std::string& layer, int inputs, const std::vector<std::string>& parts);
  /** Reads everything taken into memory, one tensor at a time, so that no more
   * than one cast's input and output stand side by side. Errors: invalid,
   * listing all that didn't fit. */
  void finish();

  mx::Dtype dtype() const {
    return dtype_;
  }

 private:
  bool records(const std::string& layer) const;

  std::unordered_map<std::string, mx::array> arrays_;
  Quantizations quantizations_;
  mx::Dtype dtype_;
  std::map<std::string, int> rotation_blocks_;
  std::vector<mx::array> taken_;
  Recording* recording_ = nullptr;
  std::set<std::string> recorded_; // parts of layers that were recorded whole
  std::vector<std::string> ignored_;
  std::vector<std::string> missing_;
  std::vector<std::string> misshaped_;
  std::vector<std::string> doubled_;
};

} // namespace parallm
