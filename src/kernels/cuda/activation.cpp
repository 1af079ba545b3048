// What feed-forward blocks do to each element, in one launch.
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/ops.h"

namespace parallm::cuda {

namespace {

// A thread takes V elements: 16 bytes, or one where the whole doesn't divide.
constexpr const char* source = R"cu(
const long index = (long)blockIdx.x * blockDim.x + threadIdx.x;
if (index * V >= (long)gate_shape[0] * gate_shape[1]) return;
struct alignas(V * sizeof(T)) Pack { T v[V]; };
const Pack g = ((const Pack*)gate)[index], u = ((const Pack*)up)[index];
Pack y;
#pragma unroll
for (int i = 0; i < V; ++i) {
  const float x = float(g.v[i]);
  y.v[i] = T(x / (1 + expf(-x)) * float(u.v[i]));
}
((Pack*)out)[index] = y;
)cu";

} // namespace

mx::array swiglu(const mx::array& gate, const mx::array& up) {
  thread_local const Kernel kernel("swiglu", {"gate", "up"}, {"out"}, source);
  const int wide = 16 / gate.itemsize();
  const int v = gate.size() % wide == 0 ? wide : 1;
  const int threads = gate.size() / v;
  return kernel(
      {gate, up},
      {gate.shape()},
      {gate.dtype()},
      {(threads + 255) / 256 * 256, 1, 1},
      {256, 1, 1},
      {{"T", gate.dtype()}, {"V", v}})[0];
}

} // namespace parallm::cuda
