// The cache's attention against plain softmax attention over each sequence,
// with scattered blocks.
#include "golden.h"

#include "kernels/rows.h"
#include "kv/cache.h"

namespace parallm::test {

namespace {

/** Attention of one query [H,D] over keys [S,G,D] and values [S,G,D], in MLX's
 * small ops. */
mx::array plain(const mx::array& q, const mx::array& k, const mx::array& v, const Attention& how) {
  int repeats = q.shape(0) / k.shape(1);
  auto keys = mx::repeat(k, repeats, 1);
  auto values = mx::repeat(v, repeats, 1);
  auto scores = mx::sum(mx::expand_dims(q, 0) * keys, 2) * how.scale; // [S,H]
  if (how.softcap > 0) {
    scores = mx::tanh(scores / how.softcap) * how.softcap;
  }
  if (how.sinks) {
    scores = mx::concatenate({scores, mx::expand_dims(*how.sinks, 0)}, 0);
  }
  auto weights = mx::softmax(scores, std::vector<int>{0}, true);
  weights = mx::slice(weights, {0, 0}, {k.shape(0), q.shape(0)});
  return mx::sum(mx::expand_dims(weights, 2) * values, 0);
}

/** Two sequences: 9 then 1 tokens of the first, all 6 of the second beside
 * the 1. */
void compare(const Attention& how, bool mlx_ops, int dim = 8, int bits = 0, double close = 1e-5) {
  KVOptions options{.block_size = 4, .blocks = 300, .dtype = mx::float32, .bits = bits};
  auto caches = make_paged_caches({{2, dim, dim}}, options, mlx_ops);
  auto q = mx::random::normal({16, 4, dim});
  auto k = mx::random::normal({16, 2, dim});
  auto v = mx::random::normal({16, 2, dim});
  caches->begin({{0, 9, 0, {299, 3, 7}}});
  auto first = caches->layer(0).attend(rows(q, 0, 9), rows(k, 0, 9), rows(v, 0, 9), how);
  mx::eval(first);
  caches->begin({{0, 1, 9, {299, 3, 7}}, {1, 6, 0, {5, 120}}});
  auto second = caches->layer(0).attend(rows(q, 9, 16), rows(k, 9, 16), rows(v, 9, 16), how);
  auto got = mx::concatenate({first, second}, 0);
  for (int t = 0; t < 16; ++t) {
    int begin = t < 10 ? 0 : 10;
    int seen = how.window > 0 ? std::max(begin, t - how.window + 1) : begin;
    seen = how.chunk > 0 ? std::max(seen, begin + (t - begin) / how.chunk * how.chunk) : seen;
    auto wanted = plain(mx::squeeze(rows(q, t, t + 1), 0), rows(k, seen, t + 1), rows(v, seen, t + 1), how);
    CAPTURE(t);
    CHECK(mx::allclose(mx::squeeze(rows(got, t, t + 1), 0), wanted, 1e-4, close).item<bool>());
  }
}

} // namespace

TEST_CASE("paged: attention equals plain attention, scattered blocks") {
  for (bool mlx_ops : {true, false}) {
    CAPTURE(mlx_ops);
    compare({.scale = 0.35f, .sinks = {}}, mlx_ops);
    compare({.scale = 0.35f, .window = 3, .sinks = {}}, mlx_ops);
    compare({.scale = 0.35f, .chunk = 3, .sinks = {}}, mlx_ops);
    compare({.scale = 0.9f, .softcap = 2, .sinks = {}}, mlx_ops);
    auto sinks = mx::random::normal({4});
    compare({.scale = 0.35f, .sinks = sinks}, mlx_ops);
    compare({.scale = 0.9f, .window = 4, .softcap = 2, .sinks = sinks}, mlx_ops);
  }
}

TEST_CASE("paged: keys and values in codes are near what they stand for") {
  for (bool mlx_ops : {true, false}) {
    CAPTURE(mlx_ops);
    for (int dim : {32, 64, 96}) {
      compare({.scale = 0.2f, .sinks = {}}, mlx_ops, dim, 8, 0.06);
      compare({.scale = 0.2f, .window = 3, .sinks = {}}, mlx_ops, dim, 4, 0.8);
    }
  }
  CHECK(kv_block_bytes({{2, 64, 64}}, {.block_size = 16, .bits = 8}) == 16 * 2 * 2 * (64 + 8));
  CHECK(kv_block_bytes({{2, 96, 64}}, {.block_size = 16, .bits = 4}) == 16 * 2 * ((48 + 24) + (32 + 8)));
  CHECK(kv_codes_fit({{2, 64, 96}, {0, 0, 0}}));
  CHECK(!kv_codes_fit({{2, 64, 80}}));
}

TEST_CASE("paged: a freed block's NaN never reaches the next owner") {
  for (bool mlx_ops : {true, false}) {
    auto caches = make_paged_caches({{1, 4, 4}}, {.block_size = 4, .blocks = 8, .dtype = mx::float32}, mlx_ops);
    auto nan = mx::full({4, 1, 4}, std::nanf(""));
    caches->begin({{0, 4, 0, {2}}});
    mx::eval(caches->layer(0).attend(nan, nan, nan, {.scale = 1, .sinks = {}}));
    // Rows of different lengths, so that one is padded; block 2 is reused.
    auto x = mx::ones({4, 1, 4});
    caches->begin({{0, 3, 0, {1}}, {3, 1, 0, {2}}});
    mx::eval(caches->layer(0).attend(x, x, x, {.scale = 1, .sinks = {}}));
    caches->begin({{0, 1, 3, {1}}, {1, 1, 1, {2}}});
    auto two = mx::ones({2, 1, 4});
    auto out = caches->layer(0).attend(two, two, two, {.scale = 1, .sinks = {}});
    CHECK(mx::allclose(out, two).item<bool>());
  }
}

TEST_CASE("paged: a block's bytes are all layers' keys and values") {
  CHECK(kv_block_bytes({{2, 8, 4}, {1, 8, 8}}, {.block_size = 16, .dtype = mx::float16}) == 16 * 2 * (2 * 12 + 16));
}

} // namespace parallm::test
