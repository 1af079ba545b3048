// Token ids to vectors, and back where a model ties its output to its input.
// Engine thread only.
#pragma once

#include "nn/linear.h"

namespace parallm {

class Embedding {
 public:
  Embedding(Weights& weights, const std::string& name, int count, int dims);

  /** ids [T] -> [T,dims]. */
  mx::array operator()(const mx::array& ids) const;
  /** x [T,dims] -> [T,count]: the matrix as an output layer. */
  mx::array as_linear(const mx::array& x) const;

 private:
  mx::array rows(const mx::array& ids) const; // as they are stored

  Matrix matrix_;
  std::optional<Rotation> rotation_;
  mx::Dtype dtype_;
};

} // namespace parallm
