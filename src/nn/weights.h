// A checkpoint's tensors by name. Layers take what they need; `finish` then
// says at once everything that was missing, left over or of another shape.
// Quantized layers are MLX's: `<name>.weight` holds packed codes,
// `<name>.scales` and (affine) `<name>.biases` one number a group (mlx/ops.h,
// `quantize`). Engine thread only.
#pragma once

#include <mlx/mlx.h>

#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

namespace parallm {
namespace mx = mlx::core;

struct Quantization {
  int group_size;
  int bits;
  std::string mode = "affine";
};

/** What config.json says: one kind for all layers, and layers that differ
 * (nothing: not quantized). */
struct Quantizations {
  std::optional<Quantization> all;
  std::map<std::string, std::optional<Quantization>> layers;
};

class Weights {
 public:
  /** `dtype`: the activations'. */
  Weights(std::unordered_map<std::string, mx::array> arrays, Quantizations quantizations, mx::Dtype dtype);

  bool has(const std::string& name) const;
  /** Where `<layer>.scales` exists and config.json doesn't deny it. */
  std::optional<Quantization> quantization(const std::string& layer);
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
   * whose tensors (weight, scales, biases, bias) are theirs, stacked. */
  void stack(const std::string& pattern, int count, const std::string& to);
  /** Takes a tensor out, for `put` to give it back in another form. */
  std::optional<mx::array> pull(const std::string& name);
  void put(const std::string& name, mx::array array);
  /** The names that end so, in order. */
  std::vector<std::string> names_ending(std::string_view suffix) const;
  /** Reads everything taken into memory. Errors: invalid, listing all that
   * didn't fit. */
  void finish();

  mx::Dtype dtype() const {
    return dtype_;
  }

 private:
  std::unordered_map<std::string, mx::array> arrays_;
  Quantizations quantizations_;
  mx::Dtype dtype_;
  std::vector<mx::array> taken_;
  std::vector<std::string> ignored_;
  std::vector<std::string> missing_;
  std::vector<std::string> misshaped_;
  std::vector<std::string> doubled_;
};

} // namespace parallm
