// What the ops see of one another's nodes that nobody has evaluated yet: a norm before a matmul, a gate after two and a
// residual after one become part of it, so that a decoder's block is a few nodes, whatever its model file says. The
// nodes that were replaced are never evaluated, unless someone else wants their results.
#pragma once

#include "kernels/pending.h"

#include <mlx/mlx.h>

#include <optional>

namespace parallm::cpu {
namespace mx = mlx::core;

struct PendingNorm {
  mx::array x, weight;
  float eps;
};

/** What makes y, where that is an rms_norm (rowwise.cpp). */
std::optional<PendingNorm> pending_norm(const mx::array& y);

/** silu(gate) * up as one matmul, where gate and up are matmuls of one x by alike matrices (matmul.cpp). */
std::optional<mx::array> gated_matmul(const mx::array& gate, const mx::array& up);

} // namespace parallm::cpu
