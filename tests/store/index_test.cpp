// Large namespaces, where an index proposes and the store scores: it must find what comparing with all finds.

#include "store/helpers.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <random>

using namespace parallm;
using namespace places;

namespace {

/** Vectors as embeddings lie: around some centres. */
class Vectors {
 public:
  explicit Vectors(size_t dimensions) : centres_(40, std::vector<float>(dimensions)) {
    for (auto& centre : centres_) {
      std::generate(centre.begin(), centre.end(), [this] { return normal_(random_); });
    }
  }
  std::vector<float> next() {
    std::vector<float> out = centres_[random_() % centres_.size()];
    for (float& x : out) {
      x += 0.5f * normal_(random_);
    }
    return out;
  }

 private:
  std::mt19937 random_{11};
  std::normal_distribution<float> normal_;
  std::vector<std::vector<float>> centres_;
};

constexpr size_t top = 10;

void put(Store& store, const std::string& space, size_t i, Vectors& vectors) {
  Document document = some_document(space, "d" + std::to_string(i));
  document.embedding = vectors.next();
  document.metadata = {{"tenth", i % 10 == 0}, {"rare", i % 200 == 0}};
  store.put(document);
}

/** The part of what `exact` finds that `indexed` finds too. */
double recall(
    Store& exact,
    Store& indexed,
    const std::vector<std::string>& spaces,
    const json::object& filter,
    Vectors& vectors,
    size_t asked = 30) {
  size_t found = 0, all = 0;
  for (size_t i = 0; i < asked; ++i) {
    const Selector selector{.spaces = spaces, .filter = parse_filter(filter), .embedding = vectors.next(), .top = top};
    const Selection wanted = exact.select(selector), got = indexed.select(selector);
    CHECK(got.hits.size() == wanted.hits.size());
    for (size_t j = 0; j < std::min(got.hits.size(), wanted.hits.size()); ++j) {
      CHECK(got.hits[j].similarity <= wanted.hits[j].similarity + 1e-5f);
      CHECK(std::find(spaces.begin(), spaces.end(), got.hits[j].document.space) != spaces.end());
    }
    const auto ids = ids_of(got);
    for (const std::string& id : ids_of(wanted)) {
      found += ids.count(id);
    }
    all += ids_of(wanted).size();
  }
  return static_cast<double>(found) / static_cast<double>(all);
}

void check_index(const std::string& url, size_t count, size_t dimensions) {
  const auto exact = open_store(url + "&exact=1000000"), indexed = open_store(url + "&exact=50");
  const std::string space = new_space("large"), other = new_space("beside");
  Vectors vectors(dimensions);
  for (size_t i = 0; i < count; ++i) {
    put(*exact, space, i, vectors);
    if (i % 4 == 0) {
      put(*exact, other, i, vectors);
    }
  }
  const double first = recall(*exact, *indexed, {space}, {}, vectors);
  CHECK(first >= 0.95);
  CHECK(recall(*exact, *indexed, {space, other}, {}, vectors) >= 0.95);
  CHECK(recall(*exact, *indexed, {space}, {{"tenth", true}}, vectors) >= 0.95);
  CHECK(recall(*exact, *indexed, {space}, {{"rare", true}}, vectors) == 1); // fewer than asked for: compared with all
  std::vector<std::string> gone;
  for (size_t i = 0; i < count; i += 2) {
    gone.push_back("d" + std::to_string(i));
  }
  exact->erase(space, gone);
  for (size_t i = 1; i < count / 4; i += 2) {
    put(*exact, space, i, vectors);
  }
  const double second = recall(*exact, *indexed, {space}, {}, vectors);
  CHECK(second >= 0.95);
  MESSAGE("recall of " << top << " is " << first << ", after changes " << second);
}

} // namespace

TEST_CASE_TEMPLATE(
    "store: an index over a large namespace finds what comparing finds",
    T,
    Faiss,
    Postgres,
    Redis,
    Neo4j) {
  OPEN_OR_RETURN(T);
  check_index(T::place().url(), 300, 20);
}

TEST_CASE("faiss store: IVF finds what comparing finds, also after training") {
  check_index(Faiss::place().url() + "&index=ivf", 2050, 21);
}

TEST_CASE_TEMPLATE("bench: puts and selections" * doctest::skip(), T, Files, Faiss, Sqlite, Postgres, Redis, Neo4j) {
  OPEN_OR_RETURN(T);
  const char* asked = std::getenv("PARALLM_BENCH_DOCUMENTS");
  const size_t count = asked == nullptr ? 5000 : std::strtoull(asked, nullptr, 10);
  constexpr size_t dimensions = 384, selections = 50;
  const bool server = T::place().has_server(), index = server || T::place().url().starts_with("faiss");
  const std::string space = new_space("bench");
  const auto exact = open_store(T::place().url() + (index ? "&exact=1000000000" : ""));
  const auto indexed = open_store(T::place().url() + (index ? "&exact=50" : ""));
  Vectors vectors(dimensions);
  using Clock = std::chrono::steady_clock;
  const auto milliseconds = [](Clock::time_point since) {
    return std::chrono::duration<double, std::milli>(Clock::now() - since).count();
  };
  auto begun = Clock::now();
  for (size_t i = 0; i < count; ++i) {
    put(*exact, space, i, vectors);
  }
  const double a_put = milliseconds(begun) / static_cast<double>(count);
  const auto a_selection = [&](Store& from) {
    from.select({.spaces = {space}, .embedding = vectors.next(), .top = top}); // builds what is built lazily
    const auto start = Clock::now();
    for (size_t i = 0; i < selections; ++i) {
      from.select({.spaces = {space}, .embedding = vectors.next(), .top = top});
    }
    return milliseconds(start) / selections;
  };
  const double compared = a_selection(*exact), proposed = a_selection(*indexed);
  MESSAGE(
      count << " documents of " << dimensions << " dimensions: put " << a_put << " ms, select exact " << compared
            << " ms, by index " << proposed << " ms, recall " << recall(*exact, *indexed, {space}, {}, vectors));
}
