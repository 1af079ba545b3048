// How an op of ours becomes a node of MLX's graph: the primitives' common part.
#pragma once

#include "base/trace.h"
#include "kernels/cpu/elements.h"

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>
#include <mlx/mlx.h>
#include <mlx/primitives.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace parallm::cpu {
namespace mx = mlx::core;

template <typename... Args>
[[noreturn]] void fail_op(const char* op, const Args&... what) {
  std::ostringstream text;
  text << "[" << op << "] ";
  (text << ... << what);
  throw std::invalid_argument(text.str());
}

/** A primitive that runs on a CPU stream only. Two nodes are never equivalent
 * unless a subclass says so. */
class CpuPrimitive : public mx::Primitive {
 public:
  CpuPrimitive() : mx::Primitive(mx::default_stream(mx::Device::cpu)) {}

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) final {
    fail_op(name(), "this op runs on a CPU stream only");
  }

 protected:
  /** Puts the node's work on its stream. */
  template <class F>
  void dispatch(mx::cpu::CommandEncoder& encoder, F work) {
    if (trace::on()) {
      encoder.dispatch([work = std::move(work), name = name()]() mutable {
        trace::Span span(name);
        work();
      });
    } else {
      encoder.dispatch(std::move(work));
    }
  }
};

/** a, or a row-contiguous copy of it, made on the stream and kept until its
 * tasks are done. */
mx::array row_contiguous(const mx::array& a, mx::cpu::CommandEncoder& encoder);
std::vector<mx::array> row_contiguous(const std::vector<mx::array>& arrays, mx::cpu::CommandEncoder& encoder);

bool is_float(mx::Dtype type);
Type element_type(const mx::array& a);

/** The memory of `out`, allocated. */
template <class T = void>
T* allocate(mx::array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  return out.data<T>();
}

} // namespace parallm::cpu
