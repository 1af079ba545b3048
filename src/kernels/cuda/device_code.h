// Text that all CUDA kernels begin with.
#pragma once

namespace parallm::cuda {

// One step of the tensor cores: d[16,8] += a[16,16] b[16,8]. Thread `lane` holds, with g = lane / 4 and c = lane % 4,
// of a rows g (a0, a2) and g + 8 (a1, a3) and columns 2c, 2c+1 (a0, a1), 2c+8, 2c+9 (a2, a3); of b those columns as
// rows, of column g; of d rows g (d0, d1) and g + 8 (d2, d3), columns 2c, 2c+1 (PTX ISA, mma.m16n8k16).
constexpr const char* device_code = R"cu(
template <typename T> constexpr bool is_bf16 = false;
template <> constexpr bool is_bf16<bfloat16> = true;
template <typename T>
__device__ inline void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  if constexpr (is_bf16<T>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}
// A cache hint for what is read once: it leaves the L2 cache to keys, values and results. NVRTC 13.0 to 13.5 make of some
// cp.async with it, in the gated matmuls of quantized_matmul.cpp, instructions that a GPU refuses (their descriptor is an
// odd register, desc[UR1]): search the code of all forms of a kernel for those before it gets the hint.
__device__ inline unsigned long long read_once() {
  unsigned long long policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
template <typename T>
__device__ inline unsigned pair(float low, float high) {
  unsigned r;
  if constexpr (is_bf16<T>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  }
  return r;
}
template <typename T>
__device__ inline float2 unpair(unsigned x) {
  if constexpr (is_bf16<T>) return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xFFFF0000));
  float2 y;
  asm("{.reg .f16 l, h;\nmov.b32 {l, h}, %2;\ncvt.f32.f16 %0, l;\ncvt.f32.f16 %1, h;}" : "=f"(y.x), "=f"(y.y) : "r"(x));
  return y;
}
)cu";

} // namespace parallm::cuda
