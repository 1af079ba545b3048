// kernels/cuda against plain float32, where there is an NVIDIA GPU.
#include "on_cuda.h"

#include "kernels/cuda/ops.h"
#include "kernels/rows.h"
#include "kv/cache.h"

namespace parallm::test {

namespace {

/** The greatest difference, of the greatest magnitude. */
double error(const mx::array& got, const mx::array& wanted) {
  auto a = floats(got), b = floats(wanted);
  REQUIRE(a.size() == b.size());
  double worst = 0, size = 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, double(std::abs(a[i] - b[i])));
    size = std::max(size, double(std::abs(b[i])));
    worst = std::isfinite(a[i]) ? worst : 1e30;
  }
  return worst / size;
}

double rounding(mx::Dtype type) {
  return type == mx::bfloat16 ? 0.01 : 0.002;
}

/** x wᵀ by products and a sum: no tensor cores, nothing rounded to 16 bits. */
mx::array product(const mx::array& x, const mx::array& w) {
  auto wide = mx::expand_dims(mx::astype(x, mx::float32), 1) * mx::expand_dims(w, 0);
  return mx::sum(wide, 2);
}

/** Attention of one query [H,D] over keys [S,G,D] and values [S,G,Dv]. */
mx::array plain(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) {
  int repeats = q.shape(0) / k.shape(1);
  auto wide = [](const mx::array& x) { return mx::astype(x, mx::float32); };
  auto keys = mx::repeat(wide(k), repeats, 1);
  auto values = mx::repeat(wide(v), repeats, 1);
  auto scores = mx::sum(mx::expand_dims(wide(q), 0) * keys, 2) * how.scale; // [S,H]
  if (how.softcap > 0) {
    scores = mx::tanh(scores / how.softcap) * how.softcap;
  }
  if (how.sinks) {
    scores = mx::concatenate({scores, mx::expand_dims(*how.sinks, 0)}, 0);
  }
  auto weights = mx::softmax(scores, std::vector<int>{0}, true);
  weights = rows(weights, 0, k.shape(0));
  return mx::sum(mx::expand_dims(weights, 2) * values, 0);
}

struct Heads {
  int queries, keys, dims, v_dims;
};

/** A sequence, fed in pieces beside others. */
struct Fed {
  mx::array q, k, v; // [n,...]
  std::vector<int32_t> blocks;
  int at = 0;
  std::vector<mx::array> outputs;
};

Fed make_sequence(int length, const Heads& heads, mx::Dtype type, int seed, int first_block, int block_size) {
  std::vector<int32_t> blocks;
  for (int i = 0; i * block_size < length; ++i) {
    blocks.push_back(first_block + (i % 2 ? i - 1 : i + 1)); // not in order
  }
  return {
      normal({length, heads.queries, heads.dims}, type, seed),
      normal({length, heads.keys, heads.dims}, type, seed + 1),
      normal({length, heads.keys, heads.v_dims}, type, seed + 2),
      blocks,
      0,
      {}};
}

/** One step: counts[i] tokens of each sequence, none where 0. */
void feed(Caches& caches, std::vector<Fed>& all, const std::vector<int>& counts, const Attention& how, int block_size) {
  std::vector<Span> spans;
  std::vector<mx::array> q, k, v;
  int first = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    auto& one = all[i];
    if (counts[i] > 0) {
      size_t needed = (one.at + counts[i] + block_size - 1) / block_size;
      spans.push_back({first, counts[i], one.at, {one.blocks.begin(), one.blocks.begin() + needed}});
      first += counts[i];
      q.push_back(rows(one.q, one.at, one.at + counts[i]));
      k.push_back(rows(one.k, one.at, one.at + counts[i]));
      v.push_back(rows(one.v, one.at, one.at + counts[i]));
    }
  }
  caches.begin(spans);
  auto out = caches.layer(0).attend(mx::concatenate(q, 0), mx::concatenate(k, 0), mx::concatenate(v, 0), how);
  mx::eval(out);
  for (size_t i = 0, span = 0; i < all.size(); ++i) {
    if (counts[i] > 0) {
      all[i].outputs.push_back(rows(out, spans[span].first, spans[span].first + counts[i]));
      all[i].at += counts[i];
      ++span;
    }
  }
}

void compare_attention(const Heads& heads, mx::Dtype type, const Attention& how, int block_size) {
  const std::vector<int> lengths = {7, 263, 600, 38};
  std::vector<Fed> all;
  const auto caches = [&] {
    return make_paged_caches(
        {{heads.keys, heads.dims, heads.v_dims}}, {.block_size = block_size, .blocks = 400, .dtype = type});
  };
  int block = 1;
  for (size_t i = 0; i < lengths.size(); ++i) {
    all.push_back(make_sequence(lengths[i], heads, type, 10 * i + 1, block, block_size));
    block += lengths[i] / block_size + 2;
  }
  auto together = caches();
  feed(*together, all, {6, 255, 590, 0}, how, block_size);
  feed(*together, all, {1, 1, 1, 30}, how, block_size); // decoding beside a prefill
  for (int i = 0; i < 7; ++i) {
    feed(*together, all, {0, 1, 1, 1}, how, block_size);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    CAPTURE(i);
    auto& one = all[i];
    auto got = mx::concatenate(one.outputs, 0);
    auto q = one.q, k = one.k;
    if (how.rope) {
      std::vector<int> positions(lengths[i]), none(lengths[i]);
      std::iota(positions.begin(), positions.end(), 0);
      auto [cos, sin] = how.rope->tables(positions, none);
      q = how.rope->rotate(q, cos, sin);
      k = how.rope->rotate(k, cos, sin);
    }
    for (int t = one.at - 8; t < one.at; ++t) {
      int from = how.window > 0 ? std::max(0, t - how.window + 1) : 0;
      from = how.chunk > 0 ? std::max(from, t / how.chunk * how.chunk) : from;
      if (t >= 0) {
        auto wanted = plain(mx::squeeze(rows(q, t, t + 1), 0), rows(k, from, t + 1), rows(one.v, from, t + 1), how);
        CAPTURE(t);
        CHECK(error(rows(got, t, t + 1), wanted) < rounding(type));
      }
    }
  }
  // A row's last tokens are the same bits when it decodes alone.
  auto alone = caches();
  std::vector<Fed> one = {make_sequence(600, heads, type, 21, 50, block_size)};
  feed(*alone, one, {590}, how, block_size);
  for (int i = 0; i < 8; ++i) {
    feed(*alone, one, {1}, how, block_size);
    CHECK(mx::array_equal(one[0].outputs.back(), all[2].outputs[i + 1]).item<bool>());
  }
}

} // namespace

TEST_CASE("cuda: quantized matmul equals a float32 sum of MLX's dequantized weights") {
  if (skipped()) {
    return;
  }
  struct Case {
    mx::Dtype type;
    int bits, group, rows, outputs, inputs;
  };
  const auto bf16 = mx::bfloat16, f16 = mx::float16;
  // Each is compiled. Groups a row that 4, 2 or 1 at once divide; outputs that fill no block; rows that fill no eight.
  const Case cases[] = {
      {bf16, 4, 64, 1, 40, 1024},
      {bf16, 4, 64, 7, 100, 4096 + 128},
      {bf16, 4, 32, 3, 33, 96},
      {bf16, 4, 128, 8, 64, 1280},
      {f16, 4, 64, 9, 70, 2048},
      {f16, 4, 128, 2, 31, 128},
      {f16, 4, 32, 16, 7, 4096},
      {bf16, 8, 64, 5, 129, 640},
      {bf16, 8, 128, 13, 64, 384},
      {bf16, 8, 32, 1, 32, 2048},
      {f16, 8, 64, 8, 130, 1024},
      {bf16, 4, 64, 31, 96, 2048},
      {bf16, 4, 64, 33, 300, 128}, // some blocks have no groups
      {f16, 8, 128, cuda::most_rows, 48, 1024},
      {bf16, 4, 64, 17, 12288 + 5, 256}, // K isn't split
      {bf16, 4, 64, 64, 4096 + 40, 2048}, // blocks share tiles
      {bf16, 4, 32, 50, 1030, 1024},
      {f16, 4, 128, 20, 6000, 512},
      {f16, 8, 32, 40, 1031, 1024},
      {bf16, 4, 64, 29, 28672, 1024}, // many tiles
      {f16, 4, 128, 64, 26001, 1024},
      {bf16, 8, 32, 64, 28680, 512},
      {bf16, 8, 64, 24, 520, 4096}};
  for (auto& [type, bits, group, m, n, k] : cases) {
    CAPTURE(bits);
    CAPTURE(group);
    CAPTURE(m);
    auto x = normal({m, k}, type, 1);
    auto q = mx::quantize(normal({n, k}, type, 2), group, bits, "affine");
    auto wide = [](const mx::array& a) { return mx::astype(a, mx::float32); };
    auto w = mx::dequantize(q[0], wide(q[1]), wide(q[2]), group, bits);
    cuda::Factor factor{q[0], q[1], q[2], group, bits};
    REQUIRE(cuda::multiplies(x, factor));
    auto y = cuda::matmul(x, factor);
    CHECK(y.dtype() == type);
    CHECK(error(y, product(x, w)) < rounding(type));
  }
}

TEST_CASE("cuda: dequantize equals MLX's, rounded once") {
  if (skipped()) {
    return;
  }
  for (auto type : {mx::bfloat16, mx::float16}) {
    for (auto [bits, group] : {std::pair{4, 32}, {8, 128}}) {
      CAPTURE(bits);
      auto q = mx::quantize(normal({37, 384}, type, 2), group, bits, "affine");
      auto wide = [](const mx::array& a) { return mx::astype(a, mx::float32); };
      auto w = mx::dequantize(q[0], wide(q[1]), wide(q[2]), group, bits);
      auto dense = cuda::dequantize(q[0], q[1], q[2], group, bits);
      CHECK(mx::array_equal(dense, mx::astype(w, type)).item<bool>());
    }
  }
}

TEST_CASE("cuda: dense matmul equals a float32 sum") {
  if (skipped()) {
    return;
  }
  struct Case {
    mx::Dtype type;
    int rows, outputs, inputs;
  };
  const auto bf16 = mx::bfloat16, f16 = mx::float16;
  // One row: outputs that fill no warp, columns that fill no lanes. More: columns that the eight warps share out
  // unevenly, outputs that fill no block, rows that fill no eight.
  const Case cases[] = {
      {bf16, 1, 40, 1024},
      {bf16, 1, 4097, 4096},
      {f16, 1, 7, 8 + 256},
      {bf16, 1, 300, 14336},
      {bf16, 2, 40, 1024},
      {bf16, 7, 100, 64},
      {f16, 8, 33, 576},
      {bf16, 9, 31, 4096 + 192},
      {f16, 16, 7, 128},
      {bf16, 15, 70, 2048},
      {f16, 3, 129, 640},
      {bf16, 16, 130, 1088},
      {f16, 5, 1, 512},
      {bf16, 17, 200, 1088},
      {f16, 40, 129, 64}, // some blocks have no columns
      {bf16, 64, 300, 2048 + 64},
      {bf16, 33, 12288 + 5, 192}, // K isn't split
      {bf16, 64, 4096 + 40, 2048}, // blocks share tiles
      {f16, 48, 1031, 4096},
      {bf16, 20, 28672, 512}, // many tiles
      {f16, 61, 26001, 256},
      {bf16, 30, 520, 14336}};
  for (auto& [type, m, n, k] : cases) {
    CAPTURE(m);
    CAPTURE(n);
    CAPTURE(k);
    auto x = normal({m, k}, type, 1), w = normal({n, k}, type, 2);
    REQUIRE(cuda::multiplies(x, {w}));
    auto y = cuda::matmul(x, {w});
    CHECK(y.dtype() == type);
    CHECK(error(y, product(x, mx::astype(w, mx::float32))) < rounding(type));
  }
}

/** Dense, or by codes of so many bits. */
cuda::Factor make_factor(int outputs, int inputs, int bits, int group, int seed) {
  auto w = normal({outputs, inputs}, mx::bfloat16, seed);
  if (bits == 16) {
    return {w};
  }
  auto q = mx::quantize(w, group, bits, "affine");
  return {q[0], q[1], q[2], group, bits};
}

constexpr std::pair<int, int> bits_and_groups[] = {{16, 0}, {4, 32}, {4, 64}, {8, 128}};

TEST_CASE("cuda: matmuls at once give what each gives alone") {
  if (skipped()) {
    return;
  }
  for (auto [bits, group] : bits_and_groups) {
    CAPTURE(bits);
    for (int m : {1, 5, 40}) {
      auto x = normal({m, 512}, mx::bfloat16, 1);
      std::vector<cuda::Factor> matrices;
      for (int outputs : {70, 32, 9}) {
        matrices.push_back(make_factor(outputs, 512, bits, group, outputs));
        auto all = cuda::matmuls(x, matrices);
        REQUIRE(all.size() == matrices.size());
        for (size_t i = 0; i < all.size(); ++i) {
          CHECK(error(all[i], cuda::matmul(x, matrices[i])) < rounding(mx::bfloat16)); // K may be split otherwise
        }
      }
    }
  }
}

TEST_CASE("cuda: a gate and a residual in a matmul's launch give the bits of ops of their own") {
  if (skipped()) {
    return;
  }
  for (auto [bits, group] : bits_and_groups) {
    CAPTURE(bits);
    for (int m : {1, 2, 12, 20, 64}) {
      CAPTURE(m);
      for (int outputs : {96, 301}) {
        CAPTURE(outputs);
        auto x = normal({m, 640}, mx::bfloat16, 1), residual = normal({m, outputs}, mx::bfloat16, 2);
        auto first = make_factor(outputs, 640, bits, group, 3), second = make_factor(outputs, 640, bits, group, 4);
        auto a = cuda::matmul(x, first), b = cuda::matmul(x, second);
        mx::eval(a, b); // nothing to fuse with any more
        auto gated = cuda::gated_matmul(cuda::matmul(x, first), cuda::matmul(x, second));
        CHECK(!cuda::gated_matmul(a, b));
        REQUIRE(gated);
        CHECK(error(*gated, cuda::swiglu(a, b)) < (m <= 16 ? 1e-6 : 2 * rounding(mx::bfloat16))); // as above
        CHECK(mx::array_equal(cuda::add(residual, cuda::matmul(x, first)), residual + a).item<bool>());
        CHECK(mx::array_equal(cuda::add(residual, a), residual + a).item<bool>());
      }
    }
  }
}

TEST_CASE("cuda: numbers of the host arrive, however many are on their way") {
  if (skipped()) {
    return;
  }
  std::vector<mx::array> arrived;
  std::vector<int> numbers(3000);
  for (int round = 0; round < 50; ++round) {
    std::iota(numbers.begin(), numbers.end(), round);
    arrived.push_back(cuda::upload(numbers.data(), {3000}, mx::int32)); // none has run
  }
  for (int round = 0; round < 50; ++round) {
    CHECK(mx::array_equal(arrived[round], mx::arange(round, round + 3000, mx::int32)).item<bool>());
  }
  for (int count : {0, 1, 3, 4, 300}) {
    CAPTURE(count);
    auto few = cuda::upload(numbers.data(), {1, count}, mx::int32);
    CHECK(few.shape() == mx::Shape{1, count});
    CHECK(mx::array_equal(few, mx::reshape(mx::arange(49, 49 + count, mx::int32), {1, count})).item<bool>());
  }
}

TEST_CASE("cuda: RMS norm equals float32 arithmetic") {
  if (skipped()) {
    return;
  }
  for (auto type : {mx::bfloat16, mx::float16}) {
    for (auto [count, width] : {std::pair{1, 4096}, {5, 8}, {cuda::most_rows, 1032}}) {
      CAPTURE(width);
      auto x = normal({count, width}, type, 1), weight = normal({width}, type, 2);
      REQUIRE(cuda::norms(x, weight));
      auto wide = mx::astype(x, mx::float32);
      auto scale = mx::rsqrt(mx::mean(mx::square(wide), -1, true) + mx::array(1e-5f));
      CHECK(error(cuda::rms_norm(x, weight, 1e-5f), wide * scale * mx::astype(weight, mx::float32)) < rounding(type));
    }
  }
}

TEST_CASE("cuda: swiglu equals float32 arithmetic") {
  if (skipped()) {
    return;
  }
  for (auto type : {mx::bfloat16, mx::float16, mx::float32}) {
    for (int width : {64, 7}) {
      auto gate = normal({3, width}, type, 1) * mx::array(4.0f, type), up = normal({3, width}, type, 2);
      auto g = mx::astype(gate, mx::float32);
      CHECK(error(cuda::swiglu(gate, up), g * mx::sigmoid(g) * mx::astype(up, mx::float32)) < rounding(type));
    }
  }
}

TEST_CASE("cuda: a matmul's rows are independent, bit for bit") {
  if (skipped()) {
    return;
  }
  for (auto [bits, group] : bits_and_groups) {
    CAPTURE(bits);
    auto factor = make_factor(96, 2048, bits, group, 2);
    for (auto [most, least] : {std::pair{16, 2}, {cuda::most_rows, 17}}) {
      auto x = normal({most, 2048}, mx::bfloat16, 1);
      auto whole = cuda::matmul(x, factor);
      for (int count = least; count + 3 <= most; count += count / 3 + 1) {
        auto part = cuda::matmul(rows(x, 3, 3 + count), factor);
        CHECK(mx::array_equal(part, rows(whole, 3, 3 + count)).item<bool>());
      }
      CHECK(mx::array_equal(cuda::matmul(x, factor), whole).item<bool>()); // the counters are 0 again
    }
  }
}

TEST_CASE("cuda: paged attention equals plain attention, alone and beside others") {
  if (skipped()) {
    return;
  }
  Rope rope;
  rope.dims = 32;
  for (int i = 0; i < 16; ++i) {
    rope.inverse_frequencies.push_back(std::pow(10000.0f, -i / 16.0f));
  }
  auto pairs = rope;
  pairs.traditional = true;
  auto bf16 = mx::bfloat16;
  compare_attention({8, 2, 64, 64}, bf16, {.scale = 0.125f, .rope = &rope, .sinks = {}}, 16);
  compare_attention({8, 2, 64, 64}, mx::float16, {.scale = 0.125f, .rope = &pairs, .sinks = {}}, 4);
  compare_attention({4, 1, 128, 128}, bf16, {.scale = 0.09f, .rope = &rope, .window = 100, .sinks = {}}, 16);
  compare_attention({20, 1, 96, 96}, bf16, {.scale = 0.1f, .chunk = 128, .sinks = {}}, 8);
  compare_attention({3, 3, 256, 256}, bf16, {.scale = 0.06f, .rope = &rope, .softcap = 5, .sinks = {}}, 16);
  compare_attention({6, 2, 192, 128}, bf16, {.scale = 0.07f, .sinks = normal({6}, mx::float32, 9)}, 16);
}

} // namespace parallm::test
