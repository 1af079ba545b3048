#include "kernels/cpu/node.h"

#include <cstring>

namespace parallm::cpu {
namespace {

struct Copy {
  const char* from;
  char* to;
  size_t item;
  mx::Shape shape;
  mx::Strides strides;

  void run(size_t axis, int64_t offset) {
    const bool last = axis + 1 == shape.size();
    for (int i = 0; i < shape[axis]; i++, offset += strides[axis]) {
      if (last) {
        std::memcpy(to, from + offset * static_cast<int64_t>(item), item);
        to += item;
      } else {
        run(axis + 1, offset);
      }
    }
  }
};

} // namespace

mx::array row_contiguous(const mx::array& a, mx::cpu::CommandEncoder& encoder) {
  if (a.flags().row_contiguous) {
    return a;
  }
  mx::array copy(a.shape(), a.dtype(), nullptr, {});
  Copy task{a.data<char>(), allocate<char>(copy), a.itemsize(), a.shape(), a.strides()};
  encoder.dispatch([task]() mutable { task.run(0, 0); });
  encoder.add_temporary(copy);
  return copy;
}

std::vector<mx::array> row_contiguous(const std::vector<mx::array>& arrays, mx::cpu::CommandEncoder& encoder) {
  std::vector<mx::array> out;
  for (const auto& a : arrays) {
    out.push_back(row_contiguous(a, encoder));
  }
  return out;
}

bool is_float(mx::Dtype type) {
  return type == mx::float32 || type == mx::float16 || type == mx::bfloat16;
}

Type element_type(const mx::array& a) {
  return a.dtype() == mx::float32 ? Type::f32 : a.dtype() == mx::float16 ? Type::f16 : Type::bf16;
}

} // namespace parallm::cpu
