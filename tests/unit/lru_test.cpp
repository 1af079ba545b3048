#include "base/lru.h"

#include <doctest/doctest.h>

using namespace parallm;

TEST_CASE("lru: what was used last stays, by weight") {
  Lru<int> lru(10);
  lru.put("a", 1, 4);
  lru.put("b", 2, 4);
  REQUIRE(lru.find("a"));
  CHECK(*lru.find("a") == 1);
  lru.put("c", 3, 4); // b was used longest ago
  CHECK(lru.find("b") == nullptr);
  CHECK(lru.find("a") != nullptr);
  CHECK(lru.size() == 2);
  CHECK(lru.weight() == 8);
  lru.put("a", 5, 1); // in place of the other
  CHECK(*lru.find("a") == 5);
  CHECK(lru.size() == 2);
  CHECK(lru.weight() == 5);
  lru.put("heavy", 9, 100); // alone it may weigh more
  CHECK(lru.size() == 1);
  CHECK(*lru.find("heavy") == 9);
  lru.put("light", 8, 1);
  CHECK(lru.find("heavy") == nullptr);
  CHECK(lru.weight() == 1);
}
