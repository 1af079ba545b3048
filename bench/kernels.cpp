// Speed of the CPU kernels against MLX's own ops, alternated in one run;
// medians. `kernels [seconds per row]`.
#include "kernels/cpu/ops.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <vector>

namespace mx = mlx::core;
using namespace parallm;

namespace {

double budget = 0.5; // seconds a row of the table

double seconds(const std::function<mx::array()>& run, int chained) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<mx::array> outputs;
  for (int i = 0; i < chained; i++) {
    outputs.push_back(run());
  }
  mx::eval(outputs);
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  return time.count() / chained;
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

/** One row: `ours` in chains of 8 nodes in one eval, so that a node's cost is
 * counted and an eval's is not. */
void row(
    const std::string& name,
    double bytes,
    double macs,
    const std::function<mx::array()>& ours,
    const std::function<mx::array()>& theirs) {
  seconds(ours, 1);
  const double first = seconds(theirs, 1);
  const int chained = first > 0.1 * budget ? 1 : 8;
  std::vector<double> a, b;
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < 5; i++) {
      a.push_back(seconds(ours, 8));
    }
    b.push_back(seconds(theirs, chained));
  } while (std::chrono::steady_clock::now() - start < std::chrono::duration<double>(budget));
  const double t = median(a), u = median(b);
  fmt::print(
      "{:<34} {:>9.1f} us (best {:.1f}) {:>7.1f} GB/s {:>7.1f} GMAC/s {:>8.1f}x\n",
      name,
      t * 1e6,
      *std::min_element(a.begin(), a.end()) * 1e6,
      bytes / t * 1e-9,
      macs / t * 1e-9,
      u / t);
}

void matmuls() {
  for (const auto& [k, n] : {std::pair{576, 1536}, {1536, 576}, {4096, 4096}}) {
    for (int m : {1, 8, 32, 128}) {
      if (k == 4096 && m > 32) {
        continue;
      }
      const auto x = mx::random::normal({m, k});
      const auto dense = mx::random::normal({n, k});
      const double macs = 1.0 * m * n * k;
      for (int bits : {4, 8, 6}) {
        const auto q = mx::quantize(dense, 32, bits, "affine");
        const auto s = mx::astype(q[1], mx::float16);
        const auto b = mx::astype(q[2], mx::float16);
        mx::eval(x, q[0], q[1], q[2], s, b);
        row(
            fmt::format("q{} K{} N{} M{}", bits, k, n, m),
            n * k * (bits / 8.0 + 4.0 / 32),
            macs,
            [&] { return cpu::quantized_matmul(x, q[0], s, b, 32, bits); },
            [&] { return mx::quantized_matmul(x, q[0], q[1], q[2], true, 32, bits); });
      }
      for (auto type : {mx::float32, mx::float16}) {
        const auto w = mx::astype(dense, type);
        mx::eval(w);
        row(
            fmt::format("{} K{} N{} M{}", type == mx::float32 ? "f32" : "f16", k, n, m),
            1.0 * n * k * w.itemsize(),
            macs,
            [&] { return cpu::matmul(x, w); },
            [&] { return mx::matmul(x, mx::transpose(w)); });
      }
    }
  }
}

} // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    budget = std::atof(argv[1]);
  }
  mx::set_default_device(mx::Device::cpu);
  fmt::print("threads: {}\n", cpu::threads());
  matmuls();
}
