// What the kernels of matmul.cpp are put together from.
#pragma once

#include "kernels/cuda/device_code.h"
#include "kernels/cuda/ops.h"

#include <mlx/mlx.h>

#include <optional>
#include <string>
#include <vector>

namespace parallm::cuda {
namespace mx = mlx::core;

// A kernel's text: what its block finds first (matmul.cpp), one of the first two, the end (matmul.cpp). Before it stand
// `block`, N, w, out and, for codes, scales and biases; GATED, with w2 (scales2, biases2) of the second matrix, whose
// rows are a block's second half. After it acc[m][t][i] are the sums of this warp's share of K: of the block's row
// t*16 + g (i < 2) or + 8, and x's row m*8 + 2*c + i%2.
extern const char* const quantized_code;
extern const char* const dense_code;
// The same for one row and dense weights (gemv.cpp), with its end.
extern const char* const gemv_code;

/** What a matmul's launch does with its results. */
enum class End { plain, gated, added };

/** Names of what a launch reads: x, and of each matrix its weights or codes with scales and biases. */
std::vector<std::string> operand_names(int matrices, bool codes);

/** What a launch reads, in that order and then `added`, and gives: a matrix's tiles are of so many outputs. */
struct Operands {
  std::vector<mx::array> inputs;
  std::vector<mx::Shape> shapes; // of the results
  int tiles = 0;
};
Operands operands(
    const mx::array& x,
    const std::vector<Factor>& factors,
    End end,
    const std::optional<mx::array>& added,
    int outputs);

/** Zeros for a launch's blocks to count in, one for each tile. Launches that may run at the same time, which are few,
 * have different ones. */
const mx::array& counters(int tiles);
constexpr int most_tiles = 1 << 14;

/** matmul.cpp's launches on a Hopper GPU: each weight is read once, codes are rounded to x's dtype once they stand for
 * weights. K is a multiple of 64, or of 128 for codes. -> the results. */
bool hopper_multiplies(const mx::array& x, const Factor& factor);
std::vector<mx::array>
hopper_matmul(const mx::array& x, const std::vector<Factor>& factors, End end, const std::optional<mx::array>& added);

/** x is of 16 bits, and the GPU gives a block so many bytes of shared memory. */
bool has_shared_memory(mx::Dtype x, int bytes);

constexpr const char* copy_code = R"cu(
__device__ inline unsigned codes(unsigned q, unsigned mask, unsigned one) { // q & mask | one, in one instruction
  asm("lop3.b32 %0, %0, %1, %2, 0xEA;" : "+r"(q) : "r"(mask), "r"(one));
  return q;
}
template <int BYTES> struct Bytes { using Type = uint4; };
template <> struct Bytes<8> { using Type = uint2; };
template <> struct Bytes<4> { using Type = unsigned; };
template <> struct Bytes<2> { using Type = unsigned short; };
template <int BYTES>
__device__ inline void copy_later(void* to, const void* from) { // from global to shared memory
  const unsigned at = __cvta_generic_to_shared(to);
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(at), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(at), "l"(from), "n"(BYTES) : "memory");
  }
}
template <int COUNT, typename T>
__device__ inline void copy(T* to, const T* from) {
  using Type = typename Bytes<COUNT * sizeof(T)>::Type;
#pragma unroll
  for (int i = 0; i < int(COUNT * sizeof(T) / sizeof(Type)); ++i) {
    const Type bytes = ((const Type*)from)[i];
    memcpy((char*)to + i * sizeof(Type), &bytes, sizeof(Type));
  }
}
)cu";

} // namespace parallm::cuda
