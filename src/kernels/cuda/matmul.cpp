// Matmuls of few rows, dense or by affine codes: each weight is read once, whatever the number of rows, and what goes
// around a matmul is part of its launch. Up to 16 rows, the eight warps of a block share out K among them; above, two
// do (and for few outputs four blocks), and four pairs of warps use the same x (on Hopper, hopper_matmul.cpp has
// those; gemv.cpp has one row by dense weights). Sums are added up in order, so a row's are the same bits with however
// many rows, of either kind.
#include "kernels/cuda/kernel.h"
#include "kernels/cuda/matmul_code.h"
#include "kernels/cuda/ops.h"
#include "kernels/pending.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <tuple>

namespace parallm::cuda {

// A warp takes every KW-th 64 columns of ROWS rows of w, which it fetches ahead into shared memory of its own: two
// tiles of 32 columns, 64 bytes a row. Lane c holds 8 columns of a tile for two steps of the tensor cores; x is read
// alike: from global memory where all warps share out K, else from tiles that the block fetches ahead too.
const char* const dense_code = R"cu(
constexpr int WARPS = 8, STAGES = 3, ROWS = NT * 16, OUTPUTS = GATED ? ROWS / 2 : ROWS, STAGE = ROWS * 128;
const int M = x_shape[0], K = x_shape[1], chunks = K / 64;
const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = lane % 4, g = lane / 4;
const int n0 = (block * (WARPS / KW) + warp / KW) * OUTPUTS;
const int first = chunks * split / SPLITS, last = chunks * (split + 1) / SPLITS;
float acc[MB][NT][4] = {};
extern __shared__ uint4 ring[];
char* mine = (char*)ring + warp * STAGES * STAGE;
const int half = lane % 8 / 4, r0 = lane / 8;
const long lane_at = (long)(n0 + r0) * K + lane % 8 * 8;
const T *lane_w = w + lane_at, *lane_w2 = w2 + lane_at;
char* lane_to = mine + half * ROWS * 64 + c * 16;
auto fetch = [&](int s, int stage) {
#pragma unroll
  for (int r = 0; r < ROWS; r += 4)
    if (n0 + r0 + r % OUTPUTS < N)
      copy_later<16>(lane_to + stage * STAGE + ((r0 ^ half) + r) * 64,
                     (r < OUTPUTS ? lane_w : lane_w2) + s * 64 + (long)(r % OUTPUTS) * K);
};
constexpr bool SHARED_X = KW < WARPS;
constexpr int X_PITCH = KW * 128 + 64, X_STAGE = MB * 8 * X_PITCH; // half a cycle of banks between rows
char* x_tiles = (char*)ring + WARPS * STAGES * STAGE;
auto fetch_x = [&](int base, int stage) {
  for (int i = threadIdx.x; i < M * KW * 8; i += WARPS * 32) {
    const int row = i / (KW * 8), at = i % (KW * 8);
    if (base + at / 8 < last)
      copy_later<16>(x_tiles + stage * X_STAGE + row * X_PITCH + at * 16, x + (long)row * K + base * 64 + at * 8);
  }
};
#pragma unroll
for (int i = 0; i < STAGES - 1; ++i) {
  const int s = first + warp % KW + KW * i;
  if (s < last) fetch(s, i);
  if (SHARED_X) fetch_x(first + KW * i, i);
  asm volatile("cp.async.commit_group;" ::: "memory");
}
const T* lane_x = x + (long)g * K + c * 8;
for (int base = first, stage = 0; base < last; base += KW, stage = (stage + 1) % STAGES) {
  const int s = base + warp % KW;
  uint4 early[2][SHARED_X ? 1 : MB];
  if constexpr (!SHARED_X) {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int m = 0; m < MB; ++m)
        early[h][m] =
            m * 8 + g < M && s < last ? *(const uint4*)(lane_x + (long)m * 8 * K + s * 64 + h * 32) : make_uint4(0, 0, 0, 0);
  }
  asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2) : "memory");
  if (SHARED_X) __syncthreads(); else __syncwarp();
  const int next = base + (STAGES - 1) * KW;
  if (next + warp % KW < last) fetch(next + warp % KW, (stage + STAGES - 1) % STAGES);
  if (SHARED_X) fetch_x(next, (stage + STAGES - 1) % STAGES);
  asm volatile("cp.async.commit_group;" ::: "memory");
  if (s >= last) continue;
  const char* now = mine + stage * STAGE + c * 16;
  const char* now_x = x_tiles + stage * X_STAGE + g * X_PITCH + (warp % KW * 64 + c * 8) * 2;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint4 xs[MB];
#pragma unroll
    for (int m = 0; m < MB; ++m) {
      if constexpr (SHARED_X) {
        xs[m] = *(const uint4*)(now_x + m * 8 * X_PITCH + h * 64);
      } else {
        xs[m] = early[h][m];
      }
    }
#pragma unroll
    for (int t = 0; t < NT; ++t) {
      const char* tile = now + (h * ROWS + t * 16 + (g ^ h)) * 64;
      const uint4 a = *(const uint4*)tile, b = *(const uint4*)(tile + 8 * 64);
#pragma unroll
      for (int m = 0; m < MB; ++m) mma<T>(acc[m][t], a.x, b.x, a.y, b.y, xs[m].x, xs[m].y);
#pragma unroll
      for (int m = 0; m < MB; ++m) mma<T>(acc[m][t], a.z, b.z, a.w, b.w, xs[m].z, xs[m].w);
    }
  }
}
)cu";

namespace {

// The warps' sums of [x's rows][the block's rows], 4 apart from whole banks, are added up; each result is rounded
// before it is gated or added to, as by ops of their own. Where blocks share out K, the last one to come adds up what
// all of them left in `sums`, in their order; `counters` are 0 before and after.
constexpr const char* end_code = R"cu(
constexpr int PITCH = ROWS + 4, ALL = WARPS / KW * ROWS, ALL_OUTPUTS = WARPS / KW * OUTPUTS;
asm volatile("cp.async.wait_all;" ::: "memory");
__syncthreads();
float* parts = (float*)ring;
#pragma unroll
for (int m = 0; m < MB; ++m)
#pragma unroll
  for (int t = 0; t < NT; ++t)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      parts[((warp * MB + m) * 8 + 2 * c + i % 2) * PITCH + t * 16 + i / 2 * 8 + g] = acc[m][t][i];
__syncthreads();
// Four outputs of a row at once; all of a thread's are asked for before the first is written.
auto part = [&](int row, int at) {
  float4 y = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int k = 0; k < KW; ++k) {
    const float4 z = *(const float4*)(parts + ((at / ROWS * KW + k) * MB * 8 + row) * PITCH + at % ROWS);
    y.x += z.x, y.y += z.y, y.z += z.z, y.w += z.w;
  }
  return y;
};
constexpr int SUMS = MB * 8 * ALL; // a block's
if constexpr (SPLITS > 1) {
  float4* to = (float4*)(sums + (long)blockIdx.x * SUMS);
  for (int i = threadIdx.x; i < M * ALL / 4; i += WARPS * 32) __stcg(to + i, part(i / (ALL / 4), i % (ALL / 4) * 4));
  __shared__ unsigned before;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) before = atomicInc((unsigned*)counters + blockIdx.x / SPLITS, SPLITS - 1);
  __syncthreads();
  if (before != SPLITS - 1) return;
  __threadfence();
}
auto total = [&](int row, int at) {
  if constexpr (SPLITS == 1) return part(row, at);
  float4 y = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int k = 0; k < SPLITS; ++k) {
    const float4 z = __ldcg((const float4*)(sums + (long)(blockIdx.x - split + k) * SUMS + row * ALL + at));
    y.x += z.x, y.y += z.y, y.z += z.z, y.w += z.w;
  }
  return y;
};
struct alignas(4 * sizeof(T)) Four { T v[4]; };
constexpr int EACH = (MB * 8 * ALL_OUTPUTS / 4 + WARPS * 32 - 1) / (WARPS * 32);
const bool whole = N % 4 == 0;
float4 ys[EACH], ups[GATED ? EACH : 1];
Four more[ADDED ? EACH : 1];
#pragma unroll
for (int e = 0; e < EACH; ++e) {
  const int i = (threadIdx.x + e * WARPS * 32) * 4, row = i / ALL_OUTPUTS, j = i % ALL_OUTPUTS;
  const int r = j / OUTPUTS * ROWS + j % OUTPUTS, n = block * ALL_OUTPUTS + j;
  if (row >= M || n >= N) continue;
  ys[e] = total(row, r);
  if constexpr (GATED) ups[e] = total(row, r + OUTPUTS);
  if constexpr (ADDED) {
    if (whole) {
      more[e] = *(const Four*)(added + (long)row * N + n);
    } else {
      for (int q = 0; q < min(4, N - n); ++q) more[e].v[q] = added[(long)row * N + n + q];
    }
  }
}
#pragma unroll
for (int e = 0; e < EACH; ++e) {
  const int i = (threadIdx.x + e * WARPS * 32) * 4, row = i / ALL_OUTPUTS, j = i % ALL_OUTPUTS;
  const int n = block * ALL_OUTPUTS + j;
  if (row >= M || n >= N) continue;
  const float y[4] = {ys[e].x, ys[e].y, ys[e].z, ys[e].w};
  Four result;
  if constexpr (GATED) {
    const float up[4] = {ups[e].x, ups[e].y, ups[e].z, ups[e].w};
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float gate = float(T(y[q]));
      result.v[q] = T(gate / (1 + expf(-gate)) * float(T(up[q])));
    }
  } else {
#pragma unroll
    for (int q = 0; q < 4; ++q) result.v[q] = ADDED ? T(float(more[ADDED ? e : 0].v[q]) + float(T(y[q]))) : T(y[q]);
  }
  T* to = out + (long)row * N + n;
  if (whole) {
    *(Four*)to = result;
  } else {
    for (int q = 0; q < min(4, N - n); ++q) to[q] = result.v[q];
  }
}
)cu";

constexpr int few_rows = 16; // of x: up to them, all eight warps share out K

constexpr int warps = 8; // of a block
constexpr int warp_rows = 32; // of w
constexpr int gemv_rows = 2; // of w, that a warp has in gemv_code

struct Kind {
  bool codes;
  End end;
  int count; // of matrices
  bool vector; // one row, dense weights
  bool split; // K, among blocks
  int registers; // of a thread, at most
  int shared; // bytes of a block's memory

  auto operator<=>(const Kind&) const = default;
};

Kernel kernel_of(const Kind& kind) {
  const int outputs = kind.end == End::gated ? 1 : kind.count;
  auto inputs = operand_names(kind.count, kind.codes);
  std::vector<std::string> names;
  const auto pick = [&](int from, const char* suffix) {
    auto text = fmt::format("w{1} = f{0};\n", from, suffix);
    return kind.codes ? text + fmt::format("scales{1} = s{0};\nbiases{1} = b{0};\n", from, suffix) : text;
  };
  std::string find =
      "const int split = blockIdx.x % SPLITS;\nint block = blockIdx.x / SPLITS, N = f0_shape[0];\n"
      "auto *w = f0, *w2 = f0;\nauto* out = o0;\n";
  if (kind.codes) {
    find += "auto *scales = s0, *scales2 = s0, *biases = b0, *biases2 = b0;\n";
  }
  for (int i = 0; i < outputs; i++) {
    names.push_back(fmt::format("o{}", i));
    if (i > 0) {
      find += fmt::format(
          "if (block >= (f{0}_shape[0] + BLOCK - 1) / BLOCK) {{\n"
          "block -= (f{0}_shape[0] + BLOCK - 1) / BLOCK;\nN = f{1}_shape[0];\nout = o{1};\n",
          i - 1,
          i);
      find += pick(i, "");
    }
  }
  find += std::string(outputs - 1, '}') + "\n";
  if (kind.end == End::gated) {
    find += pick(1, "2");
  }
  if (kind.end == End::added) {
    inputs.push_back("added");
  } else {
    find += "const T* added = nullptr;\n";
  }
  if (kind.split) {
    inputs.push_back("counters");
    names.push_back("sums");
  } else {
    find += "int* counters = nullptr;\nfloat* sums = nullptr;\n";
  }
  find += fmt::format("constexpr bool GATED = {}, ADDED = {};\n", kind.end == End::gated, kind.end == End::added);
  find += kind.vector ? gemv_code : std::string(kind.codes ? quantized_code : dense_code) + end_code;
  return Kernel(
      kind.vector ? "gemv" : "matmul",
      inputs,
      names,
      find,
      std::string(device_code) + copy_code,
      kind.shared,
      kind.registers);
}

bool has_codes(const Factor& factor) {
  return factor.scales.has_value();
}

/** What gemv_code is for. */
bool is_vector(const mx::array& x, const Factor& factor) {
  return x.shape(0) == 1 && !has_codes(factor);
}

/** Pieces of 16 bytes of a row's group of codes. */
int words(const Factor& factor) {
  return factor.group_size * factor.bits / 128;
}

/** Groups that a warp reads at once: up to 128 bytes of a row, or 128 columns. */
int groups_at_once(int rows, const Factor& factor) {
  const int wanted = rows <= few_rows ? 8 / words(factor) : 128 / factor.group_size;
  int count = std::clamp(wanted, 1, 4);
  while (factor.scales->shape(1) % count != 0) {
    count /= 2;
  }
  return count;
}

int eights(int rows) {
  return rows <= 8 ? 1 : rows <= few_rows ? 2 : rows <= 32 ? 4 : 8;
}

/** Warps that share out K. */
int sharing(int rows) {
  return rows <= few_rows ? 8 : 2;
}

/** The kernels' STAGES of each of eight warps' rows, and of tiles of x (X_STAGE). */
int shared_memory(int rows, const Factor& factor) {
  const int groups = has_codes(factor) ? groups_at_once(rows, factor) : 0;
  const int row = has_codes(factor) ? groups * (words(factor) * 16 + 4) : 128;
  const int x_row = has_codes(factor) ? sharing(rows) * groups * factor.group_size * 2 + 16 : sharing(rows) * 128 + 64;
  const int stages = 3 * (warps * warp_rows * row + (rows <= few_rows ? 0 : eights(rows) * 8 * x_row));
  const int sums = warps * eights(rows) * 8 * (warp_rows + 4) * 4; // take over their place
  return std::max(stages, sums);
}

/** Among how many blocks K is shared out, so that a matrix of few rows keeps the whole GPU busy. */
int splits(int rows, const Factor& factor) {
  return rows <= few_rows || factor.w.shape(0) >= 12288 ? 1 : 4;
}

/** A launch's blocks. */
struct Block {
  int rows; // of w
  int shared; // bytes of memory
  int registers; // of a thread, at most
};

Block block_of(const mx::array& x, const Factor& factor) {
  const int rows = x.shape(0);
  if (is_vector(x, factor)) {
    return {warps * gemv_rows, 0, 80}; // three blocks at once: with registers for four it would spill
  }
  const bool two = rows <= (has_codes(factor) ? 8 : few_rows); // blocks at once
  return {warp_rows * warps / sharing(rows), shared_memory(rows, factor), two ? 128 : 255};
}

std::vector<mx::array>
launch(const mx::array& x, const std::vector<Factor>& factors, End end, const std::optional<mx::array>& added) {
  thread_local std::map<Kind, Kernel> kernels;
  const auto& first = factors[0];
  const int rows = x.shape(0);
  const int count = factors.size(), parts = splits(rows, first);
  const bool codes = has_codes(first), vector = is_vector(x, first);
  if (rows > few_rows && hopper_multiplies(x, first)) {
    return hopper_matmul(x, factors, end, added);
  }
  const auto block = block_of(x, first);
  const Kind kind{codes, end, count, vector, parts > 1, block.registers, block.shared};
  auto found = kernels.find(kind);
  if (found == kernels.end()) {
    found = kernels.emplace(kind, kernel_of(kind)).first;
  }
  const int outputs = end == End::gated ? block.rows / 2 : block.rows;
  auto [inputs, shapes, tiles] = operands(x, factors, end, added, outputs);
  std::vector<mx::Dtype> types(shapes.size(), x.dtype());
  if (kind.split) {
    inputs.push_back(counters(tiles));
    shapes.push_back({tiles * parts * eights(rows) * 8 * block.rows});
    types.push_back(mx::float32);
  }
  std::vector<std::pair<std::string, mx::fast::TemplateArg>> how = {
      {"T", x.dtype()}, {"BLOCK", block.rows}, {"SPLITS", parts}};
  if (vector) {
    how.emplace_back("ROWS", gemv_rows);
  } else {
    how.insert(how.end(), {{"MB", eights(rows)}, {"NT", warp_rows / 16}, {"KW", sharing(rows)}});
  }
  if (codes) {
    how.insert(how.end(), {{"GROUP", first.group_size}, {"BITS", first.bits}, {"GV", groups_at_once(rows, first)}});
  }
  return found->second(inputs, shapes, types, {tiles * parts * 32 * warps, 1, 1}, {32 * warps, 1, 1}, how);
}

/** MLX's node for one matmul, which becomes a kernel when it runs: often, what follows it replaces it before. Inputs
 * and outputs are the kernel's. */
class Product : public mx::Primitive {
 public:
  Product(Factor factor, std::shared_ptr<mx::Primitive> kernel)
      : mx::Primitive(mx::default_stream(mx::default_device())),
        factor_(std::move(factor)),
        kernel_(std::move(kernel)) {}

  DEFINE_NAME(parallm_matmul)

  const Factor& factor() const {
    return factor_;
  }

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("[matmul] this kernel runs on a GPU only");
  }

  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    kernel_->eval_gpu(inputs, outputs);
  }

 private:
  Factor factor_;
  std::shared_ptr<mx::Primitive> kernel_;
};

bool alike(const Factor& a, const Factor& b) {
  return has_codes(a) == has_codes(b) && a.group_size == b.group_size && a.bits == b.bits;
}

} // namespace

std::vector<std::string> operand_names(int matrices, bool codes) {
  std::vector<std::string> names{"x"};
  for (int i = 0; i < matrices; i++) {
    names.push_back(fmt::format("f{}", i));
    if (codes) {
      names.insert(names.end(), {fmt::format("s{}", i), fmt::format("b{}", i)});
    }
  }
  return names;
}

Operands operands(
    const mx::array& x,
    const std::vector<Factor>& factors,
    End end,
    const std::optional<mx::array>& added,
    int outputs) {
  Operands all{{x}, {}};
  for (const auto& factor : factors) {
    all.inputs.push_back(factor.w);
    if (has_codes(factor)) {
      all.inputs.insert(all.inputs.end(), {*factor.scales, *factor.biases});
    }
    if (all.shapes.empty() || end != End::gated) {
      all.tiles += (factor.w.shape(0) + outputs - 1) / outputs;
      all.shapes.push_back({x.shape(0), factor.w.shape(0)});
    }
  }
  if (added) {
    all.inputs.push_back(*added);
  }
  return all;
}

const mx::array& counters(int tiles) {
  constexpr int count = 64;
  thread_local std::vector<mx::array> all;
  thread_local int next = 0;
  if (tiles > most_tiles) {
    throw std::runtime_error("[matmul] more tiles than counters");
  }
  if (all.empty()) {
    for (int i = 0; i < count; i++) {
      all.push_back(mx::zeros({most_tiles}, mx::int32));
    }
    mx::eval(all);
  }
  return all[next++ % count];
}

bool multiplies(const mx::array& x, const Factor& factor) {
  if (x.ndim() != 2 || x.shape(0) > most_rows) {
    return false;
  }
  if (has_codes(factor)) {
    return factor.biases && factor.scales->dtype() == x.dtype() &&
        multiplies(x.dtype(), factor.group_size, factor.bits) &&
        has_shared_memory(x.dtype(), shared_memory(x.shape(0), factor));
  }
  const bool vector = is_vector(x, factor);
  return x.shape(0) > 0 && x.shape(1) % (vector ? 8 : 64) == 0 && factor.w.dtype() == x.dtype() &&
      has_shared_memory(x.dtype(), vector ? 0 : shared_memory(x.shape(0), factor));
}

std::vector<mx::array> matmuls(const mx::array& x, const std::vector<Factor>& factors) {
  const auto as_first = [&](const Factor& factor) {
    return splits(x.shape(0), factor) == splits(x.shape(0), factors[0]);
  };
  std::vector<mx::array> results;
  if (!std::all_of(factors.begin(), factors.end(), as_first)) {
    for (const auto& factor : factors) {
      results.push_back(matmul(x, factor));
    }
    return results;
  }
  results = launch(x, factors, End::plain, {});
  results.erase(results.begin() + factors.size(), results.end());
  return results;
}

mx::array matmul(const mx::array& x, const Factor& factor) {
  auto kernel = launch(x, {factor}, End::plain, {});
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> types;
  for (const auto& output : kernel) {
    shapes.push_back(output.shape());
    types.push_back(output.dtype());
  }
  return mx::array::make_arrays(
      shapes, types, std::make_shared<Product>(factor, kernel[0].primitive_ptr()), kernel[0].inputs())[0];
}

std::optional<mx::array> gated_matmul(const mx::array& gate, const mx::array& up) {
  auto *a = pending<Product>(gate), *b = pending<Product>(up);
  if (!a || !b || gate.inputs()[0].id() != up.inputs()[0].id() || gate.shape() != up.shape() ||
      !alike(a->factor(), b->factor())) {
    return {};
  }
  auto& factor = a->factor();
  if (has_codes(factor)) {
    if (words(factor) * groups_at_once(gate.shape(0), factor) < 2) {
      return {}; // a lane's copies wouldn't stay in one matrix
    }
  }
  return launch(gate.inputs()[0], {factor, b->factor()}, End::gated, {})[0];
}

mx::array add(const mx::array& x, const mx::array& y) {
  auto* product = pending<Product>(y);
  if (!product || x.shape() != y.shape() || x.dtype() != y.dtype()) {
    return mx::add(x, y);
  }
  return launch(y.inputs()[0], {product->factor()}, End::added, x)[0];
}

} // namespace parallm::cuda
