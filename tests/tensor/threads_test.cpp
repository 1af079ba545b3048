// parallel_for: every index once, from one caller or several, with any number
// of threads.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/threads.h"

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace parallm;

namespace {

bool each_once(size_t count) {
  std::vector<std::atomic<int>> runs(count);
  cpu::parallel_for(count, [&](size_t i) { runs[i]++; });
  for (const auto& n : runs) {
    if (n != 1) {
      return false;
    }
  }
  return true;
}

} // namespace

TEST_CASE("parallel_for runs each index once") {
  for (int threads : {1, 2, 5, 3}) {
    cpu::set_threads(threads);
    CHECK(cpu::threads() == threads);
    for (size_t count : {0, 1, 2, 7, 1000}) {
      CHECK(each_once(count));
    }
    bool all = true;
    for (int i = 0; i < 2000; i++) {
      all = all && each_once(1 + i % 17);
    }
    CHECK(all);
  }
  cpu::set_threads(2);
}

TEST_CASE("parallel_for is right when several threads call, and inside itself") {
  cpu::set_threads(3);
  std::atomic<int> wrong = 0;
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; c++) {
    callers.emplace_back([&] {
      for (int i = 0; i < 500; i++) {
        wrong += !each_once(1 + i % 23);
      }
    });
  }
  for (auto& caller : callers) {
    caller.join();
  }
  CHECK(wrong == 0);
  std::atomic<int> inner = 0;
  cpu::parallel_for(5, [&](size_t) { cpu::parallel_for(4, [&](size_t) { inner++; }); });
  CHECK(inner == 20);
  cpu::set_threads(2);
}

TEST_CASE("parallel_for wakes workers that fell asleep") {
  cpu::set_threads(2);
  for (int i = 0; i < 3; i++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    // Each index waits for the other: two threads must take part.
    std::atomic<int> in = 0;
    cpu::parallel_for(2, [&](size_t) {
      in++;
      while (in < 2) {
        std::this_thread::yield();
      }
    });
    CHECK(in == 2);
  }
}

TEST_CASE("set_threads refuses counts that make no sense") {
  CHECK_THROWS_AS(cpu::set_threads(0), std::invalid_argument);
  CHECK_THROWS_AS(cpu::set_threads(1025), std::invalid_argument);
}
