#include "base/channel.h"

#include <doctest/doctest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

using namespace parallm;

TEST_CASE("a full channel refuses and leaves the value with its owner") {
  Channel<std::unique_ptr<int>> channel(1);
  auto one = std::make_unique<int>(1);
  auto two = std::make_unique<int>(2);
  CHECK(channel.try_push(one) == Push::done);
  CHECK(channel.try_push(two) == Push::full);
  REQUIRE(two);
  CHECK(**channel.pop() == 1);
  CHECK(!channel.try_pop());
}

TEST_CASE("a closed channel refuses, gives what it has, then nothing") {
  Channel<int> channel(4);
  int value = 7;
  CHECK(channel.push(value) == Push::done);
  channel.close();
  CHECK(channel.try_push(value) == Push::closed);
  CHECK(channel.push(value) == Push::closed);
  CHECK(channel.pop() == 7);
  CHECK(channel.pop() == std::nullopt);
}

TEST_CASE("close wakes those who wait for room and for items") {
  Channel<int> full(1), empty(1);
  int value = 1;
  full.push(value);
  std::thread writer([&] { CHECK(full.push(value) == Push::closed); });
  std::thread reader([&] { CHECK(empty.pop() == std::nullopt); });
  full.close();
  empty.close();
  writer.join();
  reader.join();
}

TEST_CASE("every item of many writers arrives once") {
  Channel<int> channel(3);
  constexpr int writers = 4, each = 2000;
  std::atomic<int64_t> sum = 0;
  std::vector<std::thread> threads, readers;
  for (int w = 0; w < writers; ++w) {
    threads.emplace_back([&] {
      for (int i = 1; i <= each; ++i) {
        int item = i;
        channel.push(item);
      }
    });
  }
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      while (auto item = channel.pop()) {
        sum += *item;
      }
    });
  }
  for (auto& thread : threads) {
    thread.join();
  }
  channel.close();
  for (auto& reader : readers) {
    reader.join();
  }
  CHECK(sum == int64_t{writers} * each * (each + 1) / 2);
}
