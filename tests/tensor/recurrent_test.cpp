// Recurrent layers: the states' pool, and each recurrence in all its forms.
#include "golden.h"

#include "kernels/cpu/ops.h"
#include "kv/cache.h"
#include "nn/recurrent.h"

#include <random>

namespace parallm::test {

namespace {

mx::array piece(const mx::array& x, int axis, int first, int end) {
  auto start = mx::Shape(x.ndim(), 0);
  auto stop = x.shape();
  start[axis] = first;
  stop[axis] = end;
  return mx::slice(x, start, stop);
}

double distance(const mx::array& a, const mx::array& b) {
  REQUIRE(a.shape() == b.shape());
  auto wide = [](const mx::array& x) { return mx::astype(x, mx::float32); };
  auto scale = mx::max(mx::abs(wide(b))).item<float>();
  auto worst = mx::max(mx::abs(wide(a) - wide(b))).item<float>();
  return std::isnan(worst) ? 1e9 : worst / scale;
}

bool same(const mx::array& a, const mx::array& b) {
  return mx::array_equal(a, b).item<bool>();
}

/** s = s / 2 + x, all s; the second state counts tokens. */
mx::array decaying_sum(const std::vector<mx::array>& in, std::vector<mx::array>& states) {
  std::vector<mx::array> out;
  for (int t = 0; t < in[0].shape(1); ++t) {
    states[0] = states[0] * 0.5f + mx::squeeze(piece(in[0], 1, t, t + 1), 1);
    states[1] = states[1] + mx::array(1.0f);
    out.push_back(states[0] + mx::expand_dims(states[1], 1) * 1000.0f);
  }
  return mx::stack(out, 1);
}

constexpr int width = 6;

std::unique_ptr<Caches> sums_of(int slots, bool mlx_ops) {
  return make_paged_caches(
      {{.states = {{{width}, mx::float32}, {{}, mx::float32}}}},
      {.block_size = 4, .blocks = 64, .slots = slots, .dtype = mx::float32},
      mlx_ops);
}

struct Walk {
  mx::array x; // [L,width]
  int slot;
  int at = 0;
  std::vector<std::vector<float>> out = {};
};

/** Walk i takes counts[i] tokens (0: none) in one step, in the order of the list. */
void advance(Caches& caches, std::vector<Walk>& walks, const std::vector<int>& counts) {
  std::vector<Span> spans;
  std::vector<mx::array> parts;
  int first = 0;
  for (size_t i = 0; i < walks.size(); ++i) {
    if (counts[i] > 0) {
      spans.push_back({first, counts[i], walks[i].at, block_range(0, 16), 0, walks[i].slot});
      parts.push_back(piece(walks[i].x, 0, walks[i].at, walks[i].at + counts[i]));
      first += counts[i];
    }
  }
  caches.begin(spans);
  auto all = floats(caches.layer(0).recur({mx::concatenate(parts, 0)}, decaying_sum));
  auto from = all.begin();
  for (size_t i = 0; i < walks.size(); ++i) {
    for (int t = 0; t < counts[i]; ++t, from += width) {
      walks[i].out.emplace_back(from, from + width);
    }
    walks[i].at += counts[i];
  }
}

std::vector<std::vector<float>> alone(const mx::array& x, bool mlx_ops) {
  auto caches = sums_of(1, mlx_ops);
  std::vector<Walk> walks{{x, 0}};
  advance(*caches, walks, {x.shape(0)});
  return walks[0].out;
}

} // namespace

TEST_CASE("recurrent: states follow their sequences through mixed steps") {
  mx::random::seed(5);
  for (bool mlx_ops : {true, false}) {
    CAPTURE(mlx_ops);
    auto caches = sums_of(4, mlx_ops);
    std::vector<Walk> walks;
    for (int slot : {2, 0, 3, 1}) {
      walks.push_back({mx::random::normal({20, width}), slot});
    }
    // Prefills beside decoding rows, in no order, in chunks; rows that pause; rows that join late.
    for (auto& counts : std::vector<std::vector<int>>{
             {5, 0, 0, 0},
             {1, 7, 0, 0},
             {1, 1, 3, 0},
             {4, 1, 1, 2},
             {1, 1, 1, 1},
             {0, 1, 4, 1},
             {1, 2, 3, 4},
             {1, 1, 1, 1}}) {
      advance(*caches, walks, counts);
    }
    // A new sequence in the slot of one that goes on no more.
    walks[1] = {mx::random::normal({20, width}), 0};
    advance(*caches, walks, {1, 1, 1, 1});
    advance(*caches, walks, {1, 6, 1, 3});
    for (auto& walk : walks) {
      CAPTURE(walk.slot);
      auto wanted = alone(walk.x, mlx_ops);
      wanted.resize(walk.out.size());
      CHECK(walk.out == wanted);
    }
  }
}

TEST_CASE("recurrent: a slot outside the pool is refused") {
  auto caches = sums_of(2, false);
  caches->begin({{0, 1, 0, {0}, 0, 2}});
  CHECK_THROWS(caches->layer(0).recur({mx::zeros({1, width})}, decaying_sum));
}

TEST_CASE("recurrent: a step leaves other slots' states where they are") {
  // 32 slots of 2 MiB: one row's step must not copy the pool.
  constexpr int size = 1 << 19, slots = 32;
  auto caches = make_paged_caches(
      {{.states = {{{size}, mx::float32}}}}, {.block_size = 4, .blocks = 4, .slots = slots, .dtype = mx::float32});
  auto step = [&](int at) {
    caches->begin({{0, 1, at, {0, 1, 2, 3}, 0, 7}});
    auto out = caches->layer(0).recur({mx::ones({1, 1})}, [](auto& in, auto& states) {
      states[0] = states[0] + mx::squeeze(in[0], 1);
      return mx::expand_dims(mx::sum(states[0], 1, true), 1);
    });
    mx::eval(out);
  };
  step(0);
  step(1); // the pool stands
  mx::synchronize();
  mx::reset_peak_memory();
  auto before = mx::get_active_memory();
  step(2);
  step(3);
  mx::synchronize();
  CHECK(mx::get_peak_memory() - before < size_t(size) * 4 * 8); // the pool is 33 states
}

namespace {

/** All forms of one recurrence, of B rows and L tokens. */
void compare_forms(
    int length,
    int heads,
    int groups,
    bool by_key,
    bool delta,
    bool beta,
    bool skip,
    float strength,
    bool moves = false) {
  constexpr int rows = 2, keys = 24, values = 10;
  auto k = mx::random::normal({rows, length, groups, keys});
  k = k / mx::sqrt(mx::sum(mx::square(k), 3, true));
  auto decay_shape = by_key ? mx::Shape{rows, length, heads, keys} : mx::Shape{rows, length, heads};
  LinearRecurrence in{
      .q = mx::random::normal({rows, length, groups, keys}),
      .k = k,
      .v = mx::random::normal({rows, length, heads, values}),
      .log_decay = mx::negative(mx::abs(mx::random::normal(decay_shape))) * strength,
      .delta = delta};
  if (beta) {
    in.beta = mx::sigmoid(mx::random::normal({rows, length, heads}));
  }
  if (skip) {
    in.skip = mx::random::normal({heads});
  }
  if (moves) { // RWKV-7's: what is read is taken away in part
    in.read = mx::negative(in.k);
    in.write = in.k * mx::sigmoid(mx::random::normal(k.shape()));
    in.k = mx::random::normal(k.shape());
  }
  auto start = mx::random::normal({rows, heads, values, keys});
  auto s1 = start, s2 = start, s3 = start;
  auto by_token = linear_recurrence_by_token(in, s1);
  auto by_chunk = linear_recurrence_by_chunk(in, s2);
  auto kernel = linear_recurrence(in, s3);
  CHECK(distance(by_chunk, by_token) < 1e-4);
  CHECK(distance(s2, s1) < 1e-4);
  CHECK(distance(kernel, by_token) < 1e-4);
  CHECK(distance(s3, s1) < 1e-4);
}

} // namespace

TEST_CASE("recurrent: by token, by chunk and by kernel are one recurrence") {
  mx::random::seed(6);
  for (int length : {1, 5, 64, 150}) {
    for (bool by_key : {false, true}) {
      for (bool delta : {false, true}) {
        for (float strength : {0.01f, 1.0f, 30.0f}) { // what exp(-sum) would overflow too
          CAPTURE(length);
          CAPTURE(by_key);
          CAPTURE(delta);
          CAPTURE(strength);
          compare_forms(length, 4, 2, by_key, delta, true, !delta, strength);
          compare_forms(length, 3, 3, by_key, delta, delta, false, strength);
          if (!delta) {
            compare_forms(length, 4, 4, by_key, false, false, false, strength, true);
            compare_forms(length, 4, 2, by_key, false, true, true, strength, true);
          }
        }
      }
    }
  }
}

TEST_CASE("recurrent: equal keys again and again don't blow up the chunked delta rule") {
  int length = 128;
  LinearRecurrence in{
      .q = mx::ones({1, length, 1, 16}) * 0.25f,
      .k = mx::ones({1, length, 1, 16}) * 0.25f, // of length 1
      .v = mx::random::normal({1, length, 1, 8}),
      .log_decay = mx::zeros({1, length, 1}),
      .beta = mx::ones({1, length, 1}),
      .delta = true};
  auto s1 = mx::zeros({1, 1, 8, 16}), s2 = s1;
  CHECK(distance(linear_recurrence_by_chunk(in, s1), linear_recurrence_by_token(in, s2)) < 1e-4);
}

TEST_CASE("recurrent: on our kernels one call or many, one row or many, are the same bits") {
  if (!on_cpu()) {
    return;
  }
  mx::random::seed(7);
  constexpr int rows = 3, length = 37, heads = 6, groups = 2, keys = 20, values = 11;
  for (auto dtype : {mx::float32, mx::float16, mx::bfloat16}) {
    for (auto [delta, moves] : {std::pair(false, false), {true, false}, {false, true}}) {
      auto some = [&](const mx::Shape& shape) { return mx::astype(mx::random::normal(shape) * 0.3f, dtype); };
      // q and k out of one array, as a projection gives them
      auto both = some({rows, length, 2 * groups * keys});
      auto halves = mx::split(both, 2, 2);
      auto shaped = [&](const mx::array& x) { return mx::reshape(x, {rows, length, groups, keys}); };
      LinearRecurrence in{
          .q = shaped(halves[0]),
          .k = shaped(halves[1]),
          .v = some({rows, length, heads, values}),
          .log_decay = mx::negative(mx::abs(mx::random::normal({rows, length, heads}))),
          .beta = mx::sigmoid(mx::random::normal({rows, length, heads})),
          .delta = delta};
      if (moves) {
        in.read = shaped(some({rows, length, groups * keys}));
        in.write = shaped(some({rows, length, groups * keys}));
      }
      auto start = mx::random::normal({rows, heads, values, keys});
      auto all_state = start;
      auto all = linear_recurrence(in, all_state);
      for (int row = 0; row < rows; ++row) {
        auto state = piece(start, 0, row, row + 1);
        std::vector<mx::array> out;
        for (auto [first, end] : {std::pair(0, 1), {1, 20}, {20, 21}, {21, length}}) {
          auto cut = [&, first = first, end = end](const mx::array& x) {
            return piece(piece(x, 0, row, row + 1), 1, first, end);
          };
          LinearRecurrence part{cut(in.q), cut(in.k), cut(in.v), cut(in.log_decay), cut(*in.beta), {}, delta};
          if (in.read) {
            part.read = cut(*in.read);
            part.write = cut(*in.write);
          }
          out.push_back(linear_recurrence(part, state));
        }
        CHECK(same(mx::concatenate(out, 1), piece(all, 0, row, row + 1)));
        CHECK(same(state, piece(all_state, 0, row, row + 1)));
      }
    }
  }
}

TEST_CASE("recurrent: convolution and scans, ours and MLX's ops, whole and in pieces") {
  mx::random::seed(8);
  constexpr int rows = 2, length = 21, channels = 19, kernel = 4, states = 5;
  Weights weights(
      {{"conv.weight", mx::random::normal({channels, 1, kernel})}, {"conv.bias", mx::random::normal({channels})}},
      {},
      mx::float32);
  CausalConv conv(weights, "conv", channels, kernel, true, true);
  auto x = mx::random::normal({rows, length, channels});
  auto dt = mx::abs(mx::random::normal({rows, length, channels}));
  auto a = mx::negative(mx::abs(mx::random::normal({channels, states})));
  auto b = mx::random::normal({rows, length, states}), c = mx::random::normal({rows, length, states});
  auto skip = mx::random::normal({channels});
  using Run = std::function<mx::array(int, int, mx::array&)>;
  std::vector<std::pair<mx::array, Run>> all{
      {mx::random::normal({rows, kernel - 1, channels}),
       [&](int first, int end, mx::array& state) { return conv(piece(x, 1, first, end), state); }},
      {mx::random::normal({rows, channels, states}),
       [&](int first, int end, mx::array& state) {
         auto cut = [&](const mx::array& y) { return piece(y, 1, first, end); };
         return selective_scan(cut(x), cut(dt), a, cut(b), cut(c), skip, state);
       }},
      {mx::random::normal({rows, channels}), [&](int first, int end, mx::array& state) {
         return linear_scan(mx::negative(piece(dt, 1, first, end)), piece(x, 1, first, end), state);
       }}};
  for (auto& [start, run] : all) {
    std::vector<mx::array> outs, ends;
    for (bool mlx_ops : {true, false}) {
      MlxOps ops(mlx_ops);
      auto state = start;
      outs.push_back(run(0, length, state));
      ends.push_back(state);
    }
    CHECK(distance(outs[1], outs[0]) < 1e-5);
    CHECK(distance(ends[1], ends[0]) < 1e-5);
    auto state = start;
    auto pieces = mx::concatenate({run(0, 2, state), run(2, 3, state), run(3, length, state)}, 1);
    CHECK((on_cpu() ? same(pieces, outs[1]) : distance(pieces, outs[1]) < 1e-5));
    CHECK((on_cpu() ? same(state, ends[1]) : distance(state, ends[1]) < 1e-5));
  }
}

} // namespace parallm::test
