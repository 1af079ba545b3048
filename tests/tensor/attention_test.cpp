// paged_attention against float64, and the promise that a token's output has
// the same bits however its prompt is cut into chunks and whatever else the
// step holds.
#include "each_target.h"
#include "kernels/cpu/ops.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

namespace mx = mlx::core;
using namespace parallm;
using test::for_each_target;

namespace {

struct Case {
  int heads = 6, kv_heads = 2, dim = 64, v_dim = 64;
  cpu::PagedAttentionShape shape{.block_size = 16, .scale = 0.125f, .rope_dims = 64};
  mx::Dtype type = mx::float32, pool_type = mx::float32;
  bool sinks = false;
};

/** Part of sequence `sequence` in a step. */
struct Chunk {
  int sequence, offset, count;
};

std::vector<float> floats(const mx::array& a) {
  auto f = mx::contiguous(mx::astype(a, mx::float32));
  mx::eval(f);
  return {f.data<float>(), f.data<float>() + f.size()};
}

/** What codes keep of rows of `dim` numbers, by the rule of ops.h. */
template <class T>
void round_to_codes(std::vector<T>& rows, int dim, int bits) {
  const int group = dim % 64 == 0 ? 64 : 32;
  for (size_t g = 0; g < rows.size(); g += group) {
    const auto [low, high] = std::minmax_element(&rows[g], &rows[g] + group);
    const float least = *low, scale = (float(*high) - least) / ((1 << bits) - 1);
    for (int i = 0; i < group; ++i) {
      rows[g + i] = least + double(scale) * std::nearbyint((float(rows[g + i]) - least) * (1 / scale));
    }
  }
}

/** Sequences of random q, k and v [length, heads, dim], and pools whose blocks
 * they take in a random order. */
class World {
 public:
  World(Case c, const std::vector<int>& lengths) : c_(c), lengths_(lengths) {
    int blocks = 0, seed = 0;
    for (int n : lengths) {
      q_.push_back(normal({n, c.heads, c.dim}, ++seed));
      k_.push_back(normal({n, c.kv_heads, c.dim}, ++seed));
      v_.push_back(normal({n, c.kv_heads, c.v_dim}, ++seed));
      blocks += blocks_of(n);
    }
    std::vector<int> ids(blocks + 3);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(7));
    for (int n : lengths) {
      width_ = std::max(width_, blocks_of(n));
      tables_.emplace_back(ids.end() - blocks_of(n), ids.end());
      ids.resize(ids.size() - blocks_of(n));
    }
    // NaN where nothing was written: reading there shows.
    const auto nan = mx::array(std::numeric_limits<float>::quiet_NaN());
    const auto pool = [&](int dim) {
      const mx::Shape shape{blocks + 3, c.kv_heads, c.shape.block_size, dim};
      if (c.shape.kv_bits == 0) {
        return mx::full(shape, nan, c.pool_type);
      }
      auto coded = shape;
      coded.back() = static_cast<int>(cpu::kv_row_bytes(dim, c.shape.kv_bits));
      return mx::full(coded, mx::array(255, mx::uint8)); // a scale of NaN
    };
    k_pool_ = pool(c.dim);
    v_pool_ = pool(c.v_dim);
    sinks_ = mx::random::normal({c.heads}, mx::float32, mx::random::key(99));
    mx::eval(k_pool_, v_pool_, sinks_);
  }

  /** The outputs of one step, one array for each chunk. */
  std::vector<mx::array> step(const std::vector<Chunk>& chunks) {
    std::vector<mx::array> q, k, v;
    std::vector<int32_t> spans, table;
    std::vector<float> angles;
    int first = 0;
    for (const auto& [s, offset, count] : chunks) {
      const auto part = [&, o = offset, n = count](const mx::array& a) {
        return mx::slice(a, {o, 0, 0}, {o + n, a.shape(1), a.shape(2)});
      };
      q.push_back(part(q_[s]));
      k.push_back(part(k_[s]));
      v.push_back(part(v_[s]));
      spans.insert(spans.end(), {first, count, offset});
      auto row = tables_[s];
      row.resize(width_, -1);
      table.insert(table.end(), row.begin(), row.end());
      for (int p = offset; p < offset + count; p++) {
        for (int i = 0; i < c_.shape.rope_dims / 2; i++) {
          angles.push_back(angle(p, i));
        }
      }
      first += count;
    }
    const int R = static_cast<int>(chunks.size());
    const auto a = mx::array(angles.data(), {first, c_.shape.rope_dims / 2});
    const auto out = cpu::paged_attention(
        mx::concatenate(q, 0),
        mx::concatenate(k, 0),
        mx::concatenate(v, 0),
        mx::cos(a),
        mx::sin(a),
        k_pool_,
        v_pool_,
        mx::array(spans.data(), {R, 3}),
        mx::array(table.data(), {R, width_}),
        c_.sinks ? std::optional(sinks_) : std::nullopt,
        c_.shape);
    mx::eval(out);
    CHECK(out.dtype() == c_.type);
    std::vector<mx::array> parts;
    for (int r = 0, at = 0; r < R; at += chunks[r++].count) {
      parts.push_back(mx::slice(out, {at, 0, 0}, {at + chunks[r].count, c_.heads, c_.v_dim}));
    }
    return parts;
  }

  /** What sequence s's outputs are, in float64. */
  std::vector<double> expected(int s) const {
    const int n = lengths_[s], H = c_.heads, G = c_.kv_heads;
    const auto q = rotated(q_[s]);
    auto k = rotated(k_[s]);
    const auto sinks = floats(sinks_);
    auto v = floats(v_[s]);
    if (c_.shape.kv_bits) {
      round_to_codes(k, c_.dim, c_.shape.kv_bits);
      round_to_codes(v, c_.v_dim, c_.shape.kv_bits);
    }
    std::vector<double> out(n * H * c_.v_dim);
    for (int t = 0; t < n; t++) {
      for (int h = 0; h < H; h++) {
        const int g = h / (H / G);
        const int own = c_.shape.chunk ? t / c_.shape.chunk * c_.shape.chunk : 0;
        const int from = std::max(own, c_.shape.window ? t - c_.shape.window + 1 : 0);
        double mass = c_.sinks ? std::exp(double(sinks[h])) : 0;
        double* o = &out[(t * H + h) * c_.v_dim];
        for (int p = from; p <= t; p++) {
          const int size = c_.shape.sparse_block, block = size ? p / size : 0;
          if (size && t / size - block >= c_.shape.sparse_local && (block + h + 1) % c_.shape.sparse_stride != 0) {
            continue;
          }
          double score = 0;
          for (int i = 0; i < c_.dim; i++) {
            score += q[(t * H + h) * c_.dim + i] * k[(p * G + g) * c_.dim + i];
          }
          score *= c_.shape.scale;
          if (c_.shape.softcap > 0) {
            score = c_.shape.softcap * std::tanh(score / c_.shape.softcap);
          }
          mass += std::exp(score);
          for (int i = 0; i < c_.v_dim; i++) {
            o[i] += std::exp(score) * v[(p * G + g) * c_.v_dim + i];
          }
        }
        for (int i = 0; i < c_.v_dim; i++) {
          o[i] /= mass;
        }
      }
    }
    return out;
  }

 private:
  mx::array normal(const mx::Shape& shape, int seed) const {
    return mx::astype(mx::random::normal(shape, mx::float32, mx::random::key(seed)), c_.type);
  }

  int blocks_of(int n) const {
    return (n + c_.shape.block_size - 1) / c_.shape.block_size;
  }

  float angle(int position, int i) const {
    return position * std::pow(1e4f, -2.0f * i / c_.shape.rope_dims);
  }

  std::vector<double> rotated(const mx::array& a) const {
    const auto x = floats(a);
    std::vector<double> y(x.begin(), x.end());
    const int dims = c_.shape.rope_dims, heads = a.shape(1);
    for (size_t row = 0; row < x.size() / c_.dim; row++) {
      for (int i = 0; i < dims / 2; i++) {
        const bool pairs = c_.shape.rope_traditional;
        double& first = y[row * c_.dim + (pairs ? 2 * i : i)];
        double& second = y[row * c_.dim + (pairs ? 2 * i + 1 : i + dims / 2)];
        const double angle = this->angle(static_cast<int>(row) / heads, i);
        const double c = std::cos(angle);
        const double s = std::sin(angle);
        const double u = first, w = second;
        first = u * c - w * s;
        second = u * s + w * c;
      }
    }
    return y;
  }

  Case c_;
  std::vector<int> lengths_;
  std::vector<mx::array> q_, k_, v_;
  std::vector<std::vector<int32_t>> tables_;
  int width_ = 0;
  mx::array k_pool_{0}, v_pool_{0}, sinks_{0};
};

std::vector<Case> cases() {
  std::vector<Case> all;
  all.emplace_back();
  all.push_back(
      {.heads = 4,
       .kv_heads = 4,
       .dim = 80,
       .v_dim = 48,
       .shape = {.block_size = 8, .scale = 0.1f, .rope_dims = 40, .rope_traditional = true}});
  all.push_back({.shape = {.block_size = 16, .scale = 0.125f, .window = 20, .rope_dims = 64}, .sinks = true});
  all.push_back({.shape = {.block_size = 16, .scale = 0.125f, .chunk = 24, .rope_dims = 64}});
  all.push_back(
      {.heads = 8,
       .kv_heads = 1,
       .dim = 36,
       .v_dim = 36,
       .shape = {.block_size = 5, .scale = 0.2f, .softcap = 3.0f},
       .sinks = true});
  for (auto type : {mx::float16, mx::bfloat16}) {
    Case c;
    c.pool_type = type;
    all.push_back(c);
    c.type = type;
    c.shape.window = 33;
    all.push_back(c);
  }
  Case sparse;
  sparse.shape.sparse_block = 32;
  sparse.shape.sparse_local = 2;
  sparse.shape.sparse_stride = 3;
  all.push_back(sparse);
  sparse.shape.sparse_local = 1;
  sparse.heads = 8;
  all.push_back(sparse);
  for (int bits : {8, 4}) {
    Case c;
    c.shape.kv_bits = bits;
    all.push_back(c);
    c.type = mx::float16;
    c.v_dim = 96; // groups of 32
    c.shape.window = 33;
    all.push_back(c);
  }
  return all;
}

double tolerance(const Case& c) {
  if (c.shape.kv_bits) { // a rotated key between two codes may be rounded to the other one
    return c.shape.kv_bits == 8 ? 2e-3 : 2e-2;
  }
  return c.pool_type == mx::float32 ? 1e-5 : c.pool_type == mx::float16 ? 4e-3 : 4e-2;
}

bool same_bits(const mx::array& a, const mx::array& b) {
  const auto u = floats(a), v = floats(b);
  return u.size() == v.size() && std::memcmp(u.data(), v.data(), u.size() * sizeof(float)) == 0;
}

} // namespace

TEST_CASE("paged attention equals a float64 softmax over the sequence") {
  for_each_target([] {
    int number = 0;
    for (const Case& c : cases()) {
      INFO("case ", number++);
      World world(c, {1, 70, 300});
      const auto outs = world.step({{1, 0, 70}, {0, 0, 1}, {2, 0, 300}});
      for (int i : {0, 1, 2}) {
        const auto got = floats(outs[i]);
        const auto want = world.expected(std::vector{1, 0, 2}[i]);
        double worst = 0;
        for (size_t j = 0; j < want.size(); j++) {
          worst = std::max(worst, std::isnan(got[j]) ? 1e9 : std::abs(got[j] - want[j]));
        }
        CHECK(worst < tolerance(c));
      }
    }
  });
}

TEST_CASE("a token's attention has the same bits in any chunks and company") {
  for_each_target([] {
    int number = 0;
    for (const Case& c : cases()) {
      INFO("case ", number++);
      cpu::set_threads(1);
      const int length = 300; // some segments, so that a token alone is cut among threads
      const auto whole = World(c, {length}).step({{0, 0, length}})[0];
      cpu::set_threads(3);
      World world(c, {length, 60});
      int company = 0;
      for (int at = 0, i = 0; at < length;) {
        const int count = std::min(length - at, std::vector{1, 37, 1, 1, 16, 3}[i++ % 6]);
        std::vector<Chunk> chunks{{0, at, count}};
        if (company < 60) {
          chunks.insert(chunks.begin(), {1, company, 6});
          company += 6;
        }
        const auto part = world.step(chunks).back();
        CHECK(same_bits(part, mx::slice(whole, {at, 0, 0}, {at + count, c.heads, c.v_dim})));
        at += count;
      }
      cpu::set_threads(2);
    }
  });
}

TEST_CASE("paged attention refuses a table that points outside the pool") {
  const auto x = mx::zeros({1, 1, 32});
  const auto pool = mx::zeros({2, 1, 4, 32});
  const auto run = [&](int block, int offset) {
    auto out = cpu::paged_attention(
        x,
        x,
        x,
        mx::zeros({1}),
        mx::zeros({1}),
        pool,
        pool,
        mx::array({0, 1, offset}, {1, 3}),
        mx::array({block}, {1, 1}),
        {},
        {4, 1.0f, 0, 0, 0, false});
    mx::eval(out);
  };
  run(1, 3);
  CHECK_THROWS(run(2, 0));
  CHECK_THROWS(run(-1, 0));
  CHECK_THROWS(run(0, 4));
}
