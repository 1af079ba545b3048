// kernels/cuda's recall, and the attention that it goes on with, against plain arithmetic of double precision, where
// there is an NVIDIA GPU.
#include "on_cuda.h"

#include "kernels/cuda/ops.h"
#include "kernels/rows.h"
#include "kv/recall.h"

namespace parallm::test {

namespace {

bool same_bits(const mx::array& a, const mx::array& b) {
  return mx::array_equal(a, b).item<bool>();
}

/** The greatest difference. */
double difference(const std::vector<float>& got, const std::vector<double>& wanted) {
  REQUIRE(got.size() == wanted.size());
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    worst = std::isfinite(got[i]) ? std::max(worst, std::abs(got[i] - wanted[i])) : 1e30;
  }
  return worst;
}

/** What recall takes, of random numbers. */
struct Inputs {
  mx::array q, keys, inverse_norms, values, local, masses;
};

struct Sizes {
  int tokens, heads, groups, memories, dims, v_dims;
};

Inputs make_inputs(const Sizes& sizes, mx::Dtype type, mx::Dtype local_type, int copies = 1) {
  auto& [tokens, heads, groups, memories, dims, v_dims] = sizes;
  auto keys = normal({groups, (memories + copies - 1) / copies, dims}, type, 1);
  if (copies > 1) { // each key again and again, far apart
    std::vector<mx::array> all(copies, keys);
    keys = mx::contiguous(mx::slice(mx::concatenate(all, 1), {0, 0, 0}, {groups, memories, dims}));
  }
  auto lengths = mx::sqrt(mx::sum(mx::square(mx::astype(keys, mx::float32)), -1));
  Inputs in{
      normal({tokens, heads, dims}, mx::float32, 2),
      keys,
      mx::array(1.0f) / mx::maximum(lengths, mx::array(1e-12f)),
      normal({groups, memories, v_dims}, type, 3),
      normal({tokens, heads, v_dims}, local_type, 4),
      normal({tokens, heads}, mx::float32, 5) + 2};
  mx::eval(in.q, in.keys, in.inverse_norms, in.values, in.local, in.masses);
  return in;
}

struct Reference {
  std::vector<double> out, record;
};

/** `none` is the record before: masses, cosines and counts of nothing. */
Reference plain(const Sizes& sizes, const Inputs& in, const cpu::RecallShape& shape) {
  auto& [tokens, heads, groups, memories, dims, v_dims] = sizes;
  const auto q = floats(in.q), keys = floats(in.keys), norms = floats(in.inverse_norms), values = floats(in.values);
  const auto local = floats(in.local), masses = floats(in.masses);
  const size_t count = memories;
  Reference all{{}, std::vector<double>(3 * tokens * count)};
  std::vector<double> products(count), ranks(count), scores;
  std::vector<int> order(count);
  for (int row = 0; row < tokens * heads; ++row) {
    const int t = row / heads, g = row % heads / (heads / groups);
    const float* own_q = &q[size_t(row) * dims];
    double length = 0;
    for (int d = 0; d < dims; ++d) {
      length += double(own_q[d]) * own_q[d];
    }
    length = std::sqrt(length);
    const float* own_norms = &norms[g * count];
    for (size_t n = 0; n < count; ++n) {
      const float* key = &keys[(g * count + n) * dims];
      products[n] = 0;
      for (int d = 0; d < dims; ++d) {
        products[n] += double(own_q[d]) * key[d];
      }
      ranks[n] = shape.by_dot ? products[n] : products[n] * own_norms[n];
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return ranks[a] > ranks[b]; });
    const std::vector<int> chosen(order.begin(), order.begin() + std::min(shape.top_k, memories));
    double top = masses[row];
    scores.clear();
    for (int n : chosen) {
      double score = products[n] * shape.scale;
      score = shape.softcap > 0 ? std::tanh(score / shape.softcap) * shape.softcap : score;
      const bool taken = !shape.threshold || products[n] * own_norms[n] > *shape.threshold * length;
      scores.push_back(taken ? score : -std::numeric_limits<double>::infinity());
      top = std::max(top, scores.back());
    }
    const double own = std::exp(masses[row] - top);
    double total = own;
    for (double score : scores) {
      total += std::exp(score - top);
    }
    for (int d = 0; d < v_dims; ++d) {
      double sum = own * local[size_t(row) * v_dims + d];
      for (size_t i = 0; i < chosen.size(); ++i) {
        sum += std::exp(scores[i] - top) * values[(g * count + chosen[i]) * v_dims + d];
      }
      all.out.push_back(sum / total);
    }
    double* record = &all.record[3 * t * count];
    for (size_t n = 0; n < count && row % heads == 0; ++n) {
      record[count + n] = -2;
    }
    for (size_t i = 0; i < chosen.size(); ++i) {
      const int n = chosen[i];
      if (std::isfinite(scores[i])) {
        record[n] += std::exp(scores[i] - top) / total;
        record[count + n] = std::max(record[count + n], products[n] * own_norms[n] / length);
        record[2 * count + n] += 1;
      }
    }
  }
  return all;
}

mx::array no_record(int tokens, int memories) {
  auto none = mx::array({0.0f, -2.0f, 0.0f}, {1, 3, 1});
  return mx::contiguous(mx::broadcast_to(none, {tokens, 3, memories}));
}

mx::array recall(const Inputs& in, const cpu::RecallShape& shape, mx::array* record = nullptr) {
  return cuda::recall(in.q, in.keys, in.inverse_norms, in.values, in.local, in.masses, shape, record);
}

void compare(const Sizes& sizes, mx::Dtype type, mx::Dtype local, const cpu::RecallShape& shape, int copies = 1) {
  CAPTURE(sizes.memories);
  CAPTURE(sizes.dims);
  CAPTURE(shape.top_k);
  const auto in = make_inputs(sizes, type, local, copies);
  REQUIRE(cuda::recalls(in.q, in.keys, in.values, shape));
  const auto wanted = plain(sizes, in, shape);
  const auto out = recall(in, shape);
  CHECK(out.dtype() == local);
  CHECK(difference(floats(out), wanted.out) < (local == mx::float32 ? 5e-5 : local == mx::float16 ? 0.004 : 0.03));
  auto record = no_record(sizes.tokens, sizes.memories);
  const auto recorded = recall(in, shape, &record);
  mx::eval(recorded, record);
  CHECK(same_bits(recorded, out));
  CHECK(difference(floats(record), wanted.record) < 5e-5);
}

/** A step of rows with one token or more: what attend_openly gives, by row. */
std::vector<Attended> feed(
    Caches& caches,
    const std::vector<int>& offsets,
    const std::vector<mx::array>& q,
    const std::vector<mx::array>& k,
    const std::vector<mx::array>& v,
    const std::vector<int>& first_blocks,
    const Attention& how) {
  std::vector<Span> spans;
  int first = 0;
  for (size_t i = 0; i < q.size(); ++i) {
    const int count = q[i].shape(0);
    std::vector<int32_t> blocks((offsets[i] + count + 15) / 16);
    std::iota(blocks.begin(), blocks.end(), first_blocks[i]);
    spans.push_back({first, count, offsets[i], blocks});
    first += count;
  }
  caches.begin(spans);
  auto all = caches.layer(0).attend_openly(mx::concatenate(q, 0), mx::concatenate(k, 0), mx::concatenate(v, 0), how);
  mx::eval(all.out, all.masses, all.q);
  std::vector<Attended> out;
  for (auto& span : spans) {
    const auto part = [&](const mx::array& x) { return rows(x, span.first, span.first + span.count); };
    out.push_back({part(all.out), part(all.masses), part(all.q)});
  }
  return out;
}

/** Two decoding rows, of `lengths`, alone, together and beside a prefill. */
void compare_masses(int heads, int groups, int dims, mx::Dtype type, const Attention& how) {
  const std::vector<int> lengths{40, 1100}, first_blocks{0, 10};
  std::vector<mx::array> q, k, v, last_q, last_k, last_v, first_q, first_k, first_v;
  for (int i = 0; i < 2; ++i) {
    q.push_back(normal({lengths[i], heads, dims}, type, 10 * i + 1));
    k.push_back(normal({lengths[i], groups, dims}, type, 10 * i + 2));
    v.push_back(normal({lengths[i], groups, dims}, type, 10 * i + 3));
    const auto split = [&](const mx::array& x, auto& firsts, auto& lasts) {
      firsts.push_back(rows(x, 0, lengths[i] - 1));
      lasts.push_back(rows(x, lengths[i] - 1, lengths[i]));
    };
    split(q[i], first_q, last_q);
    split(k[i], first_k, last_k);
    split(v[i], first_v, last_v);
  }
  auto caches = make_paged_caches({{groups, dims, dims}}, {.block_size = 16, .blocks = 120, .dtype = type});
  const auto other = normal({20, heads, dims}, type, 30), other_k = normal({20, groups, dims}, type, 31);
  feed(*caches, {0, 0}, first_q, first_k, first_v, first_blocks, how);
  const std::vector<int> offsets{lengths[0] - 1, lengths[1] - 1};
  const auto both = feed(*caches, offsets, last_q, last_k, last_v, first_blocks, how);
  auto mixed = feed(
      *caches,
      {offsets[0], 0, offsets[1]},
      {last_q[0], other, last_q[1]},
      {last_k[0], other_k, last_k[1]},
      {last_v[0], other_k, last_v[1]},
      {first_blocks[0], 100, first_blocks[1]},
      how);
  mixed.erase(mixed.begin() + 1);
  for (int i = 0; i < 2; ++i) {
    CAPTURE(i);
    const auto alone = feed(*caches, {offsets[i]}, {last_q[i]}, {last_k[i]}, {last_v[i]}, {first_blocks[i]}, how)[0];
    for (auto& [out, masses, rotated] : {both[i], mixed[i]}) {
      CHECK(same_bits(out, alone.out));
      CHECK(same_bits(masses, alone.masses));
      CHECK(same_bits(rotated, alone.q));
    }
    // The same by plain arithmetic.
    auto turned_q = mx::astype(q[i], mx::float32), turned_k = k[i];
    if (how.rope) {
      std::vector<int> positions(lengths[i]), none(lengths[i]);
      std::iota(positions.begin(), positions.end(), 0);
      auto [cos, sin] = how.rope->tables(positions, none);
      turned_q = how.rope->rotate(turned_q, cos, sin);
      turned_k = how.rope->rotate(k[i], cos, sin);
    }
    CHECK(mx::allclose(rows(turned_q, lengths[i] - 1, lengths[i]), alone.q, 1e-6, 1e-6).item<bool>());
    const auto keys = floats(turned_k);
    const auto query = floats(mx::astype(rows(turned_q, lengths[i] - 1, lengths[i]), type));
    const auto sinks = how.sinks ? floats(*how.sinks) : std::vector<float>();
    std::vector<double> wanted;
    for (int h = 0; h < heads; ++h) {
      double sum = how.sinks ? std::exp(double(sinks[h])) : 0;
      for (int p = how.window > 0 ? std::max(0, lengths[i] - how.window) : 0; p < lengths[i]; ++p) {
        double score = 0;
        for (int d = 0; d < dims; ++d) {
          score += double(query[h * dims + d]) * keys[(size_t(p) * groups + h / (heads / groups)) * dims + d];
        }
        score *= how.scale;
        sum += std::exp(how.softcap > 0 ? std::tanh(score / how.softcap) * how.softcap : score);
      }
      wanted.push_back(std::log(sum));
    }
    CHECK(difference(floats(alone.masses), wanted) < 2e-3); // a rotated query may be rounded to its other neighbour
  }
}

} // namespace

TEST_CASE("cuda: recall equals plain arithmetic, whatever the sizes") {
  if (skipped()) {
    return;
  }
  const auto bf16 = mx::bfloat16, f16 = mx::float16, f32 = mx::float32;
  for (int memories : {1, 15, 16, 17, 511, 513, 5000}) {
    for (int top_k : {1, 4, 16, 64}) {
      compare({1, 4, 1, memories, 64, 64}, bf16, f32, {top_k, 0.125f, 0, false, {}});
    }
  }
  // Heads that share keys by 1, 2, 4 and 7, and fill no eight, several or more than a block takes.
  compare({3, 4, 4, 300, 32, 64}, bf16, f32, {16, 0.2f, 0, false, 0.1f});
  compare({5, 7, 1, 513, 96, 32}, f16, f32, {5, 0.1f, 3, true, {}});
  compare({2, 8, 2, 700, 128, 96}, f16, f16, {256, 0.09f, 0, false, 0.05f});
  compare({9, 4, 1, 400, 128, 128}, bf16, bf16, {16, 0.09f, 0, false, {}});
  compare({11, 2, 1, 250, 256, 256}, bf16, f32, {300, 0.06f, 0, true, -0.05f}); // all
  compare({40, 4, 2, 1000, 64, 64}, f16, f32, {16, 0.125f, 20, false, {}});
  // Many, where chunks are chosen first.
  compare({1, 2, 1, 100000, 64, 64}, bf16, f32, {16, 0.125f, 0, false, {}});
  compare({2, 2, 1, 20000, 32, 224}, bf16, f32, {100, 0.17f, 0, false, {}});
  compare({1, 2, 2, 70000, 64, 64}, f16, f32, {250, 0.125f, 0, true, {}});
}

TEST_CASE("cuda: recall takes the first of equal memories") {
  if (skipped()) {
    return;
  }
  for (bool by_dot : {false, true}) {
    compare({2, 4, 2, 600, 64, 160}, mx::bfloat16, mx::float32, {20, 0.125f, 0, by_dot, {}}, 60);
    compare({1, 4, 2, 20000, 64, 192}, mx::float16, mx::float32, {20, 0.125f, 0, by_dot, {}}, 2500);
  }
}

TEST_CASE("cuda: what recall doesn't take") {
  if (skipped()) {
    return;
  }
  const cpu::RecallShape shape{16, 0.1f, 0, false, {}};
  const auto takes = [&](const Sizes& sizes, mx::Dtype type, int top_k) {
    const auto in = make_inputs(sizes, type, mx::float32);
    auto own = shape;
    own.top_k = top_k;
    return cuda::recalls(in.q, in.keys, in.values, own);
  };
  CHECK(takes({1, 2, 1, 1000, 64, 64}, mx::bfloat16, 256));
  CHECK(!takes({1, 2, 1, 1000, 64, 64}, mx::bfloat16, 257));
  CHECK(takes({1, 2, 1, 256, 64, 64}, mx::bfloat16, 5000));
  CHECK(!takes({1, 2, 1, 1000, 64, 64}, mx::float32, 16));
  CHECK(!takes({1, 2, 1, 1000, 80, 64}, mx::bfloat16, 16));
  CHECK(!takes({1, 2, 1, 1000, 64, 288}, mx::bfloat16, 16));
}

TEST_CASE("cuda: what a query recalls doesn't depend on others, bit for bit") {
  if (skipped()) {
    return;
  }
  const cpu::RecallShape shape{16, 0.09f, 0, false, {}};
  for (int memories : {3000, 30000}) {
    const auto in = make_inputs({70, 4, 1, memories, 128, 128}, mx::bfloat16, mx::float32);
    auto record = no_record(70, memories);
    const auto all = recall(in, shape, &record);
    mx::eval(all, record);
    for (auto [from, to] : {std::pair{0, 1}, {2, 5}, {13, 20}, {69, 70}}) {
      auto own = in;
      for (auto* x : {&own.q, &own.local, &own.masses}) {
        *x = rows(*x, from, to);
      }
      auto own_record = no_record(to - from, memories);
      const auto part = recall(own, shape, &own_record);
      mx::eval(part, own_record);
      CHECK(same_bits(part, rows(all, from, to)));
      CHECK(same_bits(own_record, rows(record, from, to)));
    }
  }
}

TEST_CASE("cuda: attention of decoding rows gives the log of its sum and its queries") {
  if (skipped()) {
    return;
  }
  Rope rope;
  rope.dims = 32;
  for (int i = 0; i < 16; ++i) {
    rope.inverse_frequencies.push_back(std::pow(10000.0f, -i / 16.0f));
  }
  compare_masses(8, 2, 64, mx::bfloat16, {.scale = 0.125f, .rope = &rope, .sinks = {}});
  compare_masses(7, 1, 96, mx::float16, {.scale = 0.1f, .window = 100, .sinks = normal({7}, mx::float32, 9)});
  compare_masses(20, 1, 128, mx::bfloat16, {.scale = 0.05f, .rope = &rope, .softcap = 5, .sinks = {}});
}

TEST_CASE("cuda: a step's rows recall as with MLX's ops, recorded or not") {
  if (skipped()) {
    return;
  }
  const int heads = 8, groups = 2, dims = 64;
  const auto type = mx::bfloat16;
  const auto memory = [&](int count, int seed) {
    auto made = std::make_shared<Memory>();
    made->tokens.resize(count);
    made->layers.emplace_back(
        MemoryLayer{normal({groups, count, dims}, type, seed), normal({groups, count, dims}, type, seed + 1)});
    return std::make_shared<Memories>(std::vector<std::shared_ptr<const Memory>>{made});
  };
  const auto few = memory(37, 50), many = memory(3000, 60);
  const Attention how{.scale = 0.125f, .sinks = {}};
  std::vector<std::vector<float>> outs;
  std::vector<MemoryUse> uses;
  for (bool mlx_ops : {true, false}) {
    auto caches = make_recall_caches(
        make_paged_caches({{groups, dims, dims}}, {.block_size = 16, .blocks = 40, .slots = 4, .dtype = type}, mlx_ops),
        1,
        mlx_ops);
    const RecallHow few_how{.top_k = 5}, many_how{.top_k = 16, .by_dot = true, .threshold = 0.05f};
    const auto step = [&](int tokens, int offset, int seed, bool recorded) {
      std::vector<Span> spans;
      std::vector<std::shared_ptr<MemoryRecord>> records;
      for (int row = 0; row < 4; ++row) { // the second recalls nothing
        Span span{row * tokens, tokens, offset, {}, 0, row};
        span.blocks.resize(8);
        std::iota(span.blocks.begin(), span.blocks.end(), 8 * row);
        if (row != 1) {
          span.recalled = std::make_shared<Recalled>(row == 3 ? many : few, row == 3 ? many_how : few_how);
          records.push_back(recorded ? std::make_shared<MemoryRecord>() : nullptr);
          span.record = records.back();
        }
        spans.push_back(span);
      }
      caches->begin(spans);
      auto out = caches->layer(0).attend(
          normal({4 * tokens, heads, dims}, type, seed),
          normal({4 * tokens, groups, dims}, type, seed + 1),
          normal({4 * tokens, groups, dims}, type, seed + 2),
          how);
      outs.push_back(floats(out));
      for (auto& record : records) {
        if (record) {
          mx::eval(*record->sums->all);
          uses.push_back(record->use());
        }
      }
    };
    step(70, 0, 1, false);
    step(1, 70, 11, false);
    step(1, 71, 21, true);
    step(9, 72, 31, true);
  }
  const size_t half = outs.size() / 2, half_uses = uses.size() / 2;
  REQUIRE(half_uses == 6);
  // MLX multiplies float32 in fewer bits (TF32), so that a few queries take another one of two nearly equal memories.
  for (size_t i = 0; i < half; ++i) {
    double sum = 0;
    for (size_t j = 0; j < outs[i].size(); ++j) {
      sum += std::abs(double(outs[half + i][j]) - outs[i][j]);
    }
    CHECK(sum / outs[i].size() < 0.004);
  }
  for (size_t i = 0; i < half_uses; ++i) {
    CHECK(uses[half_uses + i].queries == uses[i].queries);
    CHECK(std::abs(uses[half_uses + i].mass - uses[i].mass) < 0.03);
    REQUIRE(!uses[i].memories.empty());
    CHECK(!uses[half_uses + i].memories.empty());
  }
}

} // namespace parallm::test
