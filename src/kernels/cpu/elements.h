// The types that kernels read and write, with no MLX: kernels' SIMD files are
// compiled once for each instruction set.
#pragma once

#include <hwy/base.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace parallm::cpu {

enum class Type { f32, f16, bf16 };

/** run(T*) with the pointer's element type. */
template <class Void, class F>
void with_type(Type type, Void* data, F&& run) {
  constexpr bool is_const = std::is_const_v<Void>;
  const auto as = [&]<class T>(T) {
    using Element = std::conditional_t<is_const, const T, T>;
    run(static_cast<Element*>(data));
  };
  switch (type) {
    case Type::f32:
      return as(float{});
    case Type::f16:
      return as(hwy::float16_t{});
    case Type::bf16:
      return as(hwy::bfloat16_t{});
  }
}

} // namespace parallm::cpu
