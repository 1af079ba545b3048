// What store.h promises, of every backend.

#include "base/error.h"
#include "store/helpers.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cmath>
#include <fstream>
#include <functional>
#include <future>
#include <map>
#include <random>
#include <set>

using namespace parallm;
using namespace places;
namespace fs = std::filesystem;

#define BACKENDS Files, Faiss, Sqlite, Postgres, Redis, Neo4j

TEST_CASE_TEMPLATE("store: a document comes back as it was put", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("a/b:c 'd\" ü{%*}");
  Document document = some_document(space, "id \\ with \"quotes\" 'and' $1 ? ünï 日本 %s");
  document.text = "first\nsecond\t\"quoted\" 'and' \\ 😀 $$ {} ";
  document.metadata = {
      {"string", "it's \"so\" \\ ü"},
      {"empty", ""},
      {"int", 1234567890123LL},
      {"negative", -7},
      {"double", 0.1},
      {"yes", true},
      {"no", false},
      {"a key.with $ and 'quotes' `too`", "x"}};
  document.options = {{"stride", 512}, {"max_length", 3072}, {"nested", {{"list", {1, 2, 3}}}}};
  document.header = "The following is a fact:\n";
  document.embedding = {0.1f, -2.5e-7f, 3.4e5f, 1.0f / 3};
  document.token_ids.resize(20000);
  for (size_t i = 0; i < document.token_ids.size(); ++i) {
    document.token_ids[i] = static_cast<int32_t>(i * 7919 % 128256);
  }
  const std::string uid = store->put(document);
  CHECK(uid.size() == 32);
  const auto found = store->get(space, document.id);
  REQUIRE(found);
  CHECK(found->uid == uid);
  CHECK(std::abs(found->created - std::time(nullptr)) < 60);
  document.uid = uid;
  document.created = found->created;
  check_same(*found, document);
  CHECK(found->embedding == document.embedding);
  CHECK(found->text == document.text);
  CHECK(found->token_ids == document.token_ids);

  const Page page = store->list(space, "", 10);
  REQUIRE(page.documents.size() == 1);
  check_same(page.documents[0], document);
  CHECK(page.documents[0].text.empty());
  CHECK(page.documents[0].token_ids.empty());

  const Selection light = store->select({.spaces = {space}});
  REQUIRE(light.hits.size() == 1);
  check_same(light.hits[0].document, document);
  CHECK(light.hits[0].document.text.empty());
  const Selection whole = store->select({.spaces = {space}, .contents = true});
  REQUIRE(whole.hits.size() == 1);
  CHECK(whole.hits[0].document.token_ids == document.token_ids);
  CHECK(whole.hits[0].document.text == document.text);
  CHECK(whole.hits[0].document.embedding == document.embedding);

  CHECK(!store->get(space, "another"));
  CHECK(!store->get(new_space("empty"), document.id));
}

TEST_CASE_TEMPLATE("store: another store at the same address, and a later one, have the same", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("shared");
  const auto other = T::place().open();
  store->put(some_document(space, "a"));
  CHECK(other->get(space, "a"));
  const uint64_t version = other->version(space);
  CHECK(version == store->version(space));
  other->put(some_document(space, "b"));
  CHECK(store->get(space, "b"));
  CHECK(store->version(space) > version);
  other->erase(space, {"a"});
  CHECK(!store->get(space, "a"));
  const auto later = T::place().open();
  CHECK(!later->get(space, "a"));
  CHECK(later->get(space, "b"));
  CHECK(later->version(space) == store->version(space));
}

TEST_CASE_TEMPLATE("store: the same id again replaces, or is refused", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("replace");
  Document document = some_document(space, "a");
  document.metadata = {{"old", 1}, {"both", "x"}};
  const std::string first = store->put(document, {"tensors ", "of the first"});
  CHECK(bytes_of(store->tensors(first, document.fingerprint)) == "tensors of the first");
  document.text = "second";
  document.tokens = 5;
  document.metadata = {{"both", 2}};
  document.embedding = {1, 2};
  const std::string second = store->put(document, {"other"});
  CHECK(second != first);
  CHECK(store->get(space, "a")->text == "second");
  CHECK(store->get(space, "a")->metadata == document.metadata);
  CHECK(store->tensors(first, document.fingerprint).state == FoundTensors::State::absent);
  CHECK(bytes_of(store->tensors(second, document.fingerprint)) == "other");
  CHECK(store->list(space, "", 10).documents.size() == 1);
  CHECK(store->select({.spaces = {space}, .filter = parse_filter(json::object{{"old", 1}})}).hits.empty());
  CHECK(store->select({.spaces = {space}, .embedding = {1, 0, 0}, .top = 9}).hits.empty());
  CHECK(store->select({.spaces = {space}, .embedding = {1, 2}, .top = 9}).hits.size() == 1);
  const auto mine = space_of(*store, space);
  CHECK(mine.documents == 1);
  CHECK(mine.tokens == 5);

  const uint64_t version = store->version(space), bytes = store->tensor_bytes();
  document.text = "third";
  CHECK_KIND(store->put(document, {"more"}, IfExists::fail), Kind::conflict);
  CHECK(store->get(space, "a")->uid == second);
  CHECK(store->version(space) == version);
  CHECK(store->tensor_bytes() == bytes);
  document.id = "b";
  store->put(document, {}, IfExists::fail);
  CHECK(store->get(space, "b")->text == "third");
}

TEST_CASE_TEMPLATE("store: erasing by id, by filter and all", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("erase"), other = new_space("other");
  std::vector<std::string> uids;
  for (int i = 0; i < 10; ++i) {
    Document document = some_document(space, "d" + std::to_string(i));
    document.metadata = {{"even", i % 2 == 0}};
    uids.push_back(store->put(document, {"bytes"}));
    store->put(some_document(other, "d" + std::to_string(i)));
  }
  CHECK(store->erase(space, {"d0", "d1", "none", "d0"}) == 2);
  CHECK(store->erase(space, {"d0"}) == 0);
  CHECK(store->tensors(uids[0], "f").state == FoundTensors::State::absent);
  CHECK(store->tensors(uids[2], "f").state == FoundTensors::State::present);
  CHECK(store->erase(space, {}, parse_filter(json::object{{"even", true}})) == 4);
  CHECK(store->erase(space, {"d3", "d5"}, parse_filter(json::object{{"even", true}})) == 0);
  CHECK(store->list(space, "", 100).documents.size() == 4);
  CHECK(store->erase(space, {}) == 4);
  CHECK(store->erase(space, {}) == 0);
  CHECK(space_of(*store, space).documents == 0);
  CHECK(store->version(space) > 0);
  CHECK(space_of(*store, other).documents == 10);
  CHECK(store->select({.spaces = {space}, .embedding = {1, 2, 3}, .top = 3}).hits.empty());
}

TEST_CASE_TEMPLATE("store: lists go page by page, in the order of the ids' bytes", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("pages");
  std::set<std::string> ids = {
      "a", "B", "b", "aa", "a b", "ä", "z", "日本", "Z", "0", "10", "2", "_", "%", "a%", "[a", "ｚ", "😀"};
  for (const std::string& id : ids) {
    Document document = some_document(space, id);
    document.metadata = {{"short", id.size() == 1}};
    store->put(document);
  }
  for (const size_t limit : {1u, 3u, 18u, 100u}) {
    std::vector<std::string> seen;
    Page page;
    do {
      page = store->list(space, seen.empty() ? "" : seen.back(), limit);
      CHECK(page.documents.size() <= limit);
      REQUIRE(!page.documents.empty());
      for (const Document& document : page.documents) {
        seen.push_back(document.id);
      }
    } while (page.more);
    CHECK(seen == std::vector<std::string>(ids.begin(), ids.end()));
  }
  std::vector<std::string> seen;
  Page page;
  do {
    page = store->list(space, seen.empty() ? "" : seen.back(), 2, parse_filter(json::object{{"short", true}}));
    for (const Document& document : page.documents) {
      seen.push_back(document.id);
    }
  } while (page.more);
  CHECK(seen == std::vector<std::string>{"%", "0", "2", "B", "Z", "_", "a", "b", "z"});
  CHECK(store->list(space, "z", 5).documents.size() == 4); // ä, 日本, ｚ, 😀
}

TEST_CASE_TEMPLATE("store: namespaces are apart, and counted", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  // Names that a backend's patterns, separators or quoting might take for others.
  const std::string base = new_space("ns");
  const std::vector<std::string> spaces = {
      base,
      base + "%",
      base + "_",
      base + "*",
      base + ":x",
      base + "'",
      base + "/../x",
      base + "{t}",
      base + " ",
      base + "é",
      base + "É",
      base + "\\",
      base + "`"};
  for (size_t i = 0; i < spaces.size(); ++i) {
    for (size_t j = 0; j <= i; ++j) {
      Document document = some_document(spaces[i], "d" + std::to_string(j));
      document.text = spaces[i];
      document.tokens = 10;
      document.embedding = {1, static_cast<float>(j)};
      store->put(document);
    }
  }
  for (size_t i = 0; i < spaces.size(); ++i) {
    CAPTURE(spaces[i]);
    const Namespace found = space_of(*store, spaces[i]);
    CHECK(found.documents == i + 1);
    CHECK(found.tokens == 10 * (i + 1));
    CHECK(found.version == store->version(spaces[i]));
    CHECK(store->get(spaces[i], "d0")->text == spaces[i]);
    CHECK(store->list(spaces[i], "", 100).documents.size() == i + 1);
    const Selection near = store->select({.spaces = {spaces[i]}, .embedding = {1, 1}, .top = 100});
    CHECK(near.hits.size() == i + 1);
    for (const Hit& hit : near.hits) {
      CHECK(hit.document.space == spaces[i]);
    }
  }
  const auto all = store->namespaces();
  CHECK(std::is_sorted(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.name < b.name; }));
  const Selection two = store->select({.spaces = {spaces[3], spaces[1]}, .ids = {"d0", "d1"}});
  REQUIRE(two.hits.size() == 4);
  CHECK(two.versions == std::vector<uint64_t>{store->version(spaces[3]), store->version(spaces[1])});
  std::vector<std::string> order;
  for (const Hit& hit : two.hits) {
    order.push_back(hit.document.space + hit.document.id);
  }
  CHECK(std::is_sorted(order.begin(), order.end()));
}

TEST_CASE_TEMPLATE("store: filters choose as filter.h says", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("filter");
  const std::vector<json::value> values = {
      "red", "Red", "", "1", "true", "it's", "\"", "ü", 1, 2, 1.5, -3, 1e300, 9007199254740991LL, true, false};
  std::mt19937 random(7);
  std::map<std::string, json::object> documents;
  for (int i = 0; i < 40; ++i) {
    json::object metadata;
    for (const char* key : {"a", "b", "c d", "e.f", "$g", "h'\"`i"}) {
      if (random() % 3 != 0) {
        metadata[key] = values[random() % values.size()];
      }
    }
    Document document = some_document(space, "d" + std::to_string(i));
    document.metadata = metadata;
    document.embedding = {1, static_cast<float>(i)};
    documents[document.id] = metadata;
    store->put(document);
  }
  std::vector<json::value> filters = {json::object{}};
  for (const char* key : {"a", "c d", "e.f", "$g", "h'\"`i", "none"}) {
    for (const json::value& value : values) {
      filters.push_back(json::object{{key, value}});
      filters.push_back(json::object{{key, {{"ne", value}}}});
      if (value.is_number()) {
        filters.push_back(json::object{{key, {{"gt", value}}}, {"b", {{"lte", 2}}}});
        filters.push_back(json::object{{key, {{"gte", -3}, {"lt", value}}}});
      }
    }
    filters.push_back(json::object{{key, {{"in", {"red", "it's", "\""}}}}});
    filters.push_back(json::object{{key, {{"in", {1, 1.5}}}}});
    filters.push_back(json::object{{key, {{"in", {true}}}}});
  }
  for (size_t i = 0; i < filters.size(); ++i) {
    const Filter filter = parse_filter(filters[i]);
    std::set<std::string> expected;
    for (const auto& [id, metadata] : documents) {
      if (matches(filter, metadata)) {
        expected.insert(id);
      }
    }
    INFO(json::serialize(filters[i]));
    CHECK(ids_of(store->select({.spaces = {space}, .filter = filter})) == expected);
    if (i % 4 == 0) {
      CHECK(ids_of(store->select({.spaces = {space}, .filter = filter, .embedding = {1, 1}, .top = 100})) == expected);
      std::set<std::string> listed;
      for (const Document& document : store->list(space, "", 100, filter).documents) {
        listed.insert(document.id);
      }
      CHECK(listed == expected);
    }
  }
}

TEST_CASE_TEMPLATE("store: the most similar are those that comparing with all finds", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::vector<std::string> spaces = {new_space("near"), new_space("near2")};
  constexpr size_t count = 150, dimensions = 24;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto vector = [&] {
    std::vector<float> out(dimensions);
    for (float& x : out) {
      x = normal(random) * 3;
    }
    return out;
  };
  struct Known {
    std::string space, id;
    bool even;
    std::vector<float> vector;
  };
  std::vector<Known> all;
  for (size_t i = 0; i < count; ++i) {
    Document document = some_document(spaces[i % 3 == 0 ? 1 : 0], "d" + std::to_string(i));
    document.embedding = vector();
    document.metadata = {{"even", i % 2 == 0}};
    store->put(document);
    all.push_back({document.space, document.id, i % 2 == 0, document.embedding});
  }
  Document other = some_document(spaces[0], "without");
  store->put(other);
  other.id = "other length";
  other.embedding = {1, 2, 3};
  store->put(other);

  const auto exact = [](const std::vector<float>& a, const std::vector<float>& b) {
    double dot = 0, aa = 0, bb = 0;
    for (size_t i = 0; i < a.size(); ++i) {
      dot += double{a[i]} * b[i], aa += double{a[i]} * a[i], bb += double{b[i]} * b[i];
    }
    return dot / std::sqrt(aa * bb);
  };
  const auto expect = [&](const Selector& selector, const std::function<bool(const Known&)>& wanted) {
    std::vector<std::pair<double, const Known*>> expected;
    for (const Known& known : all) {
      if (wanted(known)) {
        expected.emplace_back(-exact(known.vector, selector.embedding), &known);
      }
    }
    std::sort(expected.begin(), expected.end());
    expected.resize(std::min(expected.size(), selector.top == 0 ? expected.size() : selector.top));
    const Selection found = store->select(selector);
    REQUIRE(found.hits.size() == expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK(found.hits[i].document.id == expected[i].second->id);
      CHECK(found.hits[i].document.space == expected[i].second->space);
      CHECK(std::abs(found.hits[i].similarity + expected[i].first) < 1e-5);
    }
  };
  for (int i = 0; i < 5; ++i) {
    const std::vector<float> query = i == 0 ? all[5].vector : vector();
    const auto in_first = [&](const Known& known) { return known.space == spaces[0]; };
    expect({.spaces = {spaces[0]}, .embedding = query, .top = 10}, in_first);
    expect({.spaces = {spaces[0]}, .embedding = query, .top = 1}, in_first);
    expect({.spaces = {spaces[0]}, .embedding = query}, in_first);
    expect({.spaces = spaces, .embedding = query, .top = 20}, [](const Known&) { return true; });
    expect(
        {.spaces = {spaces[0]}, .filter = parse_filter(json::object{{"even", true}}), .embedding = query, .top = 15},
        [&](const Known& known) { return known.space == spaces[0] && known.even; });
    expect(
        {.spaces = spaces, .ids = {"d1", "d2", "d3", "d4", "none"}, .embedding = query, .top = 3},
        [&](const Known& known) { return known.id.size() == 2 && known.id >= "d1" && known.id <= "d4"; });
  }
  // Erased and replaced vectors are gone from every index.
  store->erase(spaces[0], {"d1", "d2"});
  Document moved = some_document(spaces[0], "d4");
  moved.embedding = vector();
  moved.metadata = {{"even", true}};
  store->put(moved);
  std::erase_if(all, [](const Known& known) { return known.id == "d1" || known.id == "d2"; });
  for (Known& known : all) {
    known.vector = known.id == "d4" ? moved.embedding : known.vector;
  }
  for (int i = 0; i < 3; ++i) {
    expect({.spaces = spaces, .embedding = i == 0 ? moved.embedding : vector(), .top = 5}, [](const Known&) {
      return true;
    });
  }
}

TEST_CASE_TEMPLATE("store: a version grows with a change of its namespace alone", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("version"), other = new_space("other");
  CHECK(store->version(space) == 0);
  uint64_t before = 0;
  const auto grown = [&] {
    const uint64_t now = store->version(space);
    const bool grows = now > before;
    before = now;
    return grows;
  };
  store->put(some_document(space, "a"));
  CHECK(grown());
  CHECK(!grown());
  store->put(some_document(space, "a"));
  CHECK(grown());
  store->put(some_document(other, "a"));
  store->erase(other, {"a"});
  store->erase(space, {"none"});
  store->get(space, "a");
  CHECK(!grown());
  store->erase(space, {"a"});
  CHECK(grown());
  store->put(some_document(space, "a"));
  CHECK(grown());
}

TEST_CASE_TEMPLATE("store: who selects beside a writer sees one state", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  // One writer makes "a" i, then "b" i, in two namespaces: whoever selects both sees a = b or a = b + 1.
  const std::string space = new_space("snap"), other = new_space("snap");
  const auto put = [](Store& into, const std::string& where, const std::string& id, int value) {
    Document document = some_document(where, id);
    document.metadata = {{"value", value}};
    document.text = std::to_string(value);
    document.embedding = {1, static_cast<float>(value % 7)};
    into.put(document, {document.text});
  };
  put(*store, space, "a", 0);
  put(*store, other, "b", 0);
  std::atomic<bool> done = false;
  const auto writer = std::async(std::launch::async, [&] { // its end is waited for, whatever is thrown here
    struct Done {
      std::atomic<bool>& flag;
      ~Done() {
        flag = true;
      }
    } end{done};
    const auto mine = T::place().open();
    for (int i = 1; i <= 60; ++i) {
      put(*mine, space, "a", i);
      put(*mine, other, "b", i);
    }
  });
  int seen = 0, wrong = 0, different = 0;
  std::map<std::vector<uint64_t>, int> states; // versions -> a + b
  while (!done) {
    Selector selector{.spaces = {space, other}, .contents = seen % 2 == 0};
    if (seen % 3 == 0) {
      selector.embedding = {1, 1};
      selector.top = 4;
    }
    const Selection found = store->select(selector);
    ++seen;
    int a = -1, b = -1;
    for (const Hit& hit : found.hits) {
      const int value = hit.document.metadata.at("value").to_number<int>();
      (hit.document.id == "a" ? a : b) = value;
      wrong += selector.contents && hit.document.text != std::to_string(value);
    }
    wrong += found.hits.size() != 2 || !(a == b || a == b + 1);
    const auto [state, fresh] = states.emplace(found.versions, a + b);
    different += !fresh && state->second != a + b;
  }
  CHECK(wrong == 0);
  CHECK(different == 0);
  CHECK(states.size() > 3);
  MESSAGE(seen << " selections, " << states.size() << " states");
}

TEST_CASE_TEMPLATE("store: writers at once lose nothing", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("writers");
  constexpr int threads = 4, each = 15;
  std::vector<std::future<void>> writers;
  std::atomic<int> conflicts = 0;
  for (int t = 0; t < threads; ++t) {
    writers.push_back(std::async(std::launch::async, [&, t] {
      const auto mine = t % 2 == 0 ? nullptr : T::place().open();
      Store& into = mine ? *mine : *store;
      for (int i = 0; i < each; ++i) {
        into.put(some_document(space, "d" + std::to_string(t) + "." + std::to_string(i)));
        try {
          into.put(some_document(space, "same " + std::to_string(i)), {"x"}, IfExists::fail);
        } catch (const Error& error) {
          conflicts += error.kind == Kind::conflict;
        }
      }
    }));
  }
  for (auto& writer : writers) {
    writer.get();
  }
  CHECK(conflicts == (threads - 1) * each);
  CHECK(space_of(*store, space).documents == threads * each + each);
  CHECK(store->list(space, "", 1000).documents.size() == threads * each + each);
}

TEST_CASE_TEMPLATE("store: bad arguments are refused", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("bad");
  const auto put = [&](const std::function<void(Document&)>& spoil) {
    Document document = some_document(space, "a");
    spoil(document);
    store->put(document);
  };
  CHECK_KIND(put([](Document& d) { d.id = ""; }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.id = std::string(513, 'x'); }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.id = "a\nb"; }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.space = ""; }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.space = std::string("a\0b", 3); }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.text = std::string("a\0b", 3); }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.embedding = {0, 0}; }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.embedding = {1, NAN}; }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.embedding = {1, INFINITY}; }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.metadata = {{"a", nullptr}}; }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.metadata = {{"a", {1}}}; }), Kind::invalid);
  CHECK_KIND(put([](Document& d) { d.metadata = {{"", 1}}; }), Kind::invalid);
  CHECK_KIND(store->select({}), Kind::invalid);
  CHECK_KIND(store->select({.spaces = {space}, .top = 3}), Kind::invalid);
  CHECK_KIND(store->select({.spaces = {space, space}}), Kind::invalid);
  CHECK_KIND(store->list(space, "", 0), Kind::invalid);
  CHECK_KIND(store->tensors("../../etc/passwd", "f"), Kind::invalid);
  CHECK(store->version(space) == 0);
  CHECK(store->list(space, "", 10).documents.empty());
}

TEST_CASE_TEMPLATE("store: tensors come back bit for bit, or it says why not", T, BACKENDS) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("tensors");
  std::string bytes(3 << 20, '\0');
  std::mt19937 random(1);
  for (char& c : bytes) {
    c = static_cast<char>(random());
  }
  const std::string_view whole = bytes;
  const std::string uid = store->put(some_document(space, "a"), {whole.substr(0, 1000), whole.substr(1000)});
  const auto held = store->tensors(uid, "f"); // stays good, whatever happens to the file's name
  CHECK(bytes_of(held) == bytes);
  CHECK(bytes_of(T::place().open()->tensors(uid, "f")) == bytes);
  CHECK(store->tensors(uid, "another fingerprint").state == FoundTensors::State::absent);
  CHECK(store->tensors(std::string(32, '0'), "f").state == FoundTensors::State::absent);

  store->put_tensors(uid, "g", {"of g"});
  CHECK(bytes_of(store->tensors(uid, "g")) == "of g");
  CHECK(bytes_of(store->tensors(uid, "f")) == bytes);
  store->put_tensors(uid, "g", {"of g again"});
  CHECK(bytes_of(store->tensors(uid, "g")) == "of g again");
  store->put_tensors(uid, "h", {"of h"}); // the last and the one before are kept
  CHECK(bytes_of(store->tensors(uid, "h")) == "of h");
  CHECK(bytes_of(store->tensors(uid, "g")) == "of g again");
  CHECK(store->tensors(uid, "f").state == FoundTensors::State::absent);
  store->put_tensors(uid, "f", {whole});

  const fs::path file = tensor_file(T::place(), uid, bytes.size());
  {
    std::fstream change(file, std::ios::in | std::ios::out | std::ios::binary);
    change.seekp(1'234'567);
    change.put(static_cast<char>(~bytes[1'234'567]));
  }
  CHECK(store->tensors(uid, "f").state == FoundTensors::State::altered);
  fs::resize_file(file, bytes.size() / 2);
  CHECK(store->tensors(uid, "f").state == FoundTensors::State::altered);
  fs::resize_file(file, 0);
  CHECK(store->tensors(uid, "f").state == FoundTensors::State::altered);
  CHECK(bytes_of(store->tensors(uid, "h")) == "of h");
  CHECK(store->get(space, "a")); // the record is as good as before
  store->put_tensors(uid, "f", {whole}); // and encoding again mends it
  CHECK(bytes_of(store->tensors(uid, "f")) == bytes);

  store->erase(space, {"a"});
  CHECK(store->tensors(uid, "f").state == FoundTensors::State::absent);
  store->put_tensors(uid, "f", {whole}); // a document that went meanwhile leaves nothing behind
  CHECK(store->tensors(uid, "f").state == FoundTensors::State::absent);
}
