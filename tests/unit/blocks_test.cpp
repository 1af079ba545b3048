#include "engine/blocks.h"

#include "base/error.h"

#include <doctest/doctest.h>

using namespace parallm;

namespace {
const std::vector<int32_t> a{1, 2}, b{3, 4};
}

TEST_CASE("blocks run out, and come back") {
  Blocks blocks(2);
  auto one = blocks.take(), two = blocks.take();
  REQUIRE(two);
  CHECK(one != two);
  CHECK(!blocks.take());
  blocks.release(*one);
  CHECK(blocks.take() == one);
  CHECK_THROWS_AS(blocks.verify({}), Error);
}

TEST_CASE("a prefix is found by salt and all tokens before") {
  Blocks blocks(4);
  std::vector<int32_t> table{*blocks.take(), *blocks.take()};
  const auto held = table;
  PrefixKey key = PrefixKey::start;
  blocks.enter(table[0], key, a, "s");
  blocks.enter(table[1], key, b, "s");
  PrefixKey at = PrefixKey::start;
  CHECK(!blocks.adopt(at, b, "s"));
  CHECK(!blocks.adopt(at, a, ""));
  CHECK(at == PrefixKey::start);
  CHECK(blocks.adopt(at, a, "s") == held[0]);
  CHECK(blocks.adopt(at, b, "s") == held[1]);
  CHECK(at == key);
  std::vector<int32_t> second = held;
  std::vector<const std::vector<int32_t>*> tables{&table, &second};
  blocks.verify(tables);
  blocks.release(table);
  blocks.release(second);
  CHECK(blocks.free() == 4);
  CHECK(blocks.idle() == 2);
  blocks.verify({});
}

TEST_CASE("idle blocks are reused last, a prefix after what continues it") {
  Blocks blocks(2);
  std::vector<int32_t> table{*blocks.take(), *blocks.take()};
  const auto held = table;
  PrefixKey key = PrefixKey::start;
  blocks.enter(table[0], key, a, "");
  blocks.enter(table[1], key, b, "");
  blocks.release(table);
  CHECK(blocks.take() == held[1]);
  PrefixKey at = PrefixKey::start;
  CHECK(blocks.adopt(at, a, "") == held[0]);
  CHECK(!blocks.adopt(at, b, ""));
}

TEST_CASE("forget empties the cache and keeps the holds") {
  Blocks blocks(2);
  std::vector<int32_t> table{*blocks.take()};
  PrefixKey key = PrefixKey::start, at = PrefixKey::start;
  blocks.enter(table[0], key, a, "");
  blocks.forget();
  CHECK(!blocks.adopt(at, a, ""));
  std::vector<const std::vector<int32_t>*> tables{&table};
  blocks.verify(tables);
  blocks.release(table);
  CHECK(blocks.idle() == 0);
  blocks.verify({});
}
