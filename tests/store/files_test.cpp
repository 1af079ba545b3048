// The files store's own: what its files may look like after an accident. Also addresses and filters.

#include "base/error.h"
#include "memory/address.h"
#include "store/helpers.h"

#include <doctest/doctest.h>

#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iterator>

using namespace parallm;
using namespace places;
namespace fs = std::filesystem;

namespace {

std::string read_all(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_all(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string contents_file(const fs::path& store, const std::string& uid) {
  return (store / "contents" / uid.substr(0, 2) / (uid + ".json")).string();
}

void make_old(const fs::path& path) {
  fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(2));
}

} // namespace

TEST_CASE("files store: a log cut anywhere has what was whole before the cut") {
  const Folder folder;
  {
    const auto store = open_store("files:" + (folder.path / "a").string());
    for (const char* id : {"1", "2", "3"}) {
      store->put(some_document("s", id));
    }
    store->erase("s", {"2"});
  }
  const std::string log = read_all(folder.path / "a" / "log");
  CHECK(std::count(log.begin(), log.end(), '\n') == 5);
  size_t documents = 0;
  for (size_t cut = log.find('\n') + 1; cut <= log.size(); cut += cut + 40 > log.size() ? 1 : 23) {
    const fs::path copy = folder.path / "b";
    fs::remove_all(copy);
    fs::copy(folder.path / "a", copy, fs::copy_options::recursive);
    write_all(copy / "log", log.substr(0, cut));
    const auto lines = std::count(log.begin(), log.begin() + static_cast<std::ptrdiff_t>(cut), '\n');
    const auto store = open_store(copy.string());
    documents = store->list("s", "", 10).documents.size();
    CHECK(documents == std::vector<size_t>{0, 1, 2, 3, 2}.at(lines - 1));
    store->put(some_document("s", "new"));
    CHECK(open_store(copy.string())->list("s", "", 10).documents.size() == documents + 1);
  }
  CHECK(documents == 2);
}

TEST_CASE("files store: who has read on sees a log that a failed writer has cut, or left unfinished") {
  const Folder folder;
  const std::string place = (folder.path / "a").string();
  const auto store = open_store(place), other = open_store(place);
  store->put(some_document("s", "1"));
  const std::string before = read_all(folder.path / "a" / "log");
  store->put(some_document("s", "2"));
  CHECK(other->list("s", "", 10).documents.size() == 2);
  fs::resize_file(folder.path / "a" / "log", before.size()); // its bytes did not reach the disk
  CHECK(other->list("s", "", 10).documents.size() == 1);
  std::ofstream(folder.path / "a" / "log", std::ios::app) << "0123456789abcdef {\"n\": 3, \"put";
  CHECK(store->list("s", "", 10).documents.size() == 1);
  other->put(some_document("s", "3"));
  CHECK(ids_of(store->select({.spaces = {"s"}})) == std::set<std::string>{"1", "3"});
  CHECK(ids_of(other->select({.spaces = {"s"}})) == std::set<std::string>{"1", "3"});
  CHECK(open_store(place)->version("s") == store->version("s"));
  // The same cut, unseen until another line stands there: lines of another length, so that the place to go on from is
  // inside one.
  store->put(some_document("s", "4"));
  other->list("s", "", 10);
  fs::resize_file(folder.path / "a" / "log", before.size());
  const auto third = open_store(place);
  for (const char* id : {"a much longer id than all of those before it", "and another one"}) {
    third->put(some_document("s", id));
  }
  CHECK(store->list("s", "", 10).documents.size() == 3);
  CHECK(other->list("s", "", 10).documents.size() == 3);
}

TEST_CASE("files store: a log that another program's is, is refused") {
  const Folder folder;
  fs::create_directory(folder.path / "a");
  write_all(folder.path / "a" / "log", "a log of something\n");
  CHECK_KIND(open_store((folder.path / "a").string()), Kind::invalid);
}

TEST_CASE("files store: an altered line or file loses its document alone, and says so") {
  const Folder folder;
  const std::string place = (folder.path / "a").string();
  std::vector<std::string> uids;
  {
    const auto store = open_store(place);
    for (const char* id : {"1", "2", "3", "4"}) {
      Document document = some_document("s", id);
      document.text = std::string(1000, *id);
      uids.push_back(store->put(document, {"tensors"}));
    }
  }
  std::string log = read_all(folder.path / "a" / "log");
  const size_t at = log.find("\"id\":\"2\"");
  REQUIRE(at != std::string::npos);
  log[at + 6] = '7';
  write_all(folder.path / "a" / "log", log);
  const fs::path contents = contents_file(folder.path / "a", uids[2]);
  std::string bytes = read_all(contents);
  bytes[500] ^= 1;
  write_all(contents, bytes);
  fs::resize_file(contents_file(folder.path / "a", uids[3]), 0);

  const auto store = open_store(place);
  CHECK(ids_of(store->select({.spaces = {"s"}})) == std::set<std::string>{"1", "3", "4"});
  CHECK(ids_of(store->select({.spaces = {"s"}, .contents = true})) == std::set<std::string>{"1"});
  CHECK(store->get("s", "1")->text == std::string(1000, '1'));
  CHECK_KIND(store->get("s", "3"), Kind::internal);
  CHECK_KIND(store->get("s", "4"), Kind::internal);
  store->put(some_document("s", "3")); // putting it again mends it
  CHECK(store->get("s", "3")->text == "text of 3");
}

TEST_CASE("files store: a log of the past is written anew, under who reads it") {
  const Folder folder;
  const std::string place = (folder.path / "a").string();
  const auto store = open_store(place), other = open_store(place);
  Document document = some_document("s", "a");
  document.embedding.assign(20'000 / 4, 0.5f);
  for (const char* id : {"b", "c"}) {
    store->put(some_document("s", id));
  }
  store->put(some_document("gone", "a"));
  store->erase("gone", {"a"});
  const uint64_t gone = store->version("gone");
  uint64_t largest = 0, last = 0;
  bool shrank = false;
  uint64_t version = store->version("s");
  for (int i = 0; i < 60; ++i) {
    document.text = std::to_string(i);
    (i % 2 == 0 ? store : other)->put(document);
    const uint64_t size = fs::file_size(folder.path / "a" / "log");
    shrank = shrank || size < last;
    last = size;
    largest = std::max(largest, size);
    CHECK(store->get("s", "a")->text == document.text);
    CHECK(other->get("s", "a")->text == document.text);
    CHECK(other->version("s") > version);
    version = store->version("s");
    CHECK(version == other->version("s"));
  }
  CHECK(shrank);
  CHECK(largest < 2 << 20);
  const auto later = open_store(place);
  CHECK(later->version("s") == version);
  CHECK(later->version("gone") == gone);
  CHECK(later->list("s", "", 10).documents.size() == 3);
  CHECK(later->get("s", "a")->embedding == document.embedding);
  size_t contents = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder.path / "a" / "contents")) {
    contents += entry.is_regular_file();
  }
  CHECK(contents == 3);
}

TEST_CASE("files store: what killed processes left is swept when it is old") {
  const Folder folder;
  const fs::path place = folder.path / "a";
  std::string uid;
  {
    const auto store = open_store(place.string());
    uid = store->put(some_document("s", "a"), {"tensors"});
  }
  const std::string old_uid(32, 'a'), new_uid(32, 'b');
  for (const std::string& made : {old_uid, new_uid}) {
    fs::create_directories(place / "tensors" / made.substr(0, 2) / made);
    fs::create_directories(place / "contents" / made.substr(0, 2));
    write_all(place / "tensors" / made.substr(0, 2) / made / "x.safetensors", "left");
    write_all(contents_file(place, made), "left");
  }
  const fs::path unfinished = place / "tensors" / uid.substr(0, 2) / uid / "x.safetensors.1.2.tmp";
  write_all(unfinished, "left");
  make_old(place / "tensors" / "aa" / old_uid);
  make_old(contents_file(place, old_uid));
  make_old(contents_file(place, uid)); // old, but of a version that is there
  make_old(unfinished);
  make_old(place / "tensors" / uid.substr(0, 2) / uid);
  const auto store = open_store(place.string());
  CHECK(!fs::exists(place / "tensors" / "aa" / old_uid));
  CHECK(!fs::exists(contents_file(place, old_uid)));
  CHECK(!fs::exists(unfinished));
  CHECK(fs::exists(place / "tensors" / "bb" / new_uid));
  CHECK(fs::exists(contents_file(place, new_uid)));
  CHECK(store->get("s", "a"));
  CHECK(bytes_of(store->tensors(uid, "f")) == "tensors");
}

TEST_CASE_TEMPLATE("store: a full disk is an error 503 and leaves what was there", T, Files, Sqlite) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("full");
  store->put(some_document(space, "a"), {"small"});
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, SIG_IGN);
  const rlimit small{100'000, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  Document large = some_document(space, "b");
  const std::string tensors(200'000, 'x');
  CHECK_KIND(store->put(large, {tensors}), Kind::unavailable);
  large.text.assign(8'000'000, 'x');
  CHECK_KIND(store->put(large), Kind::unavailable);
  setrlimit(RLIMIT_FSIZE, &before);
  CHECK(ids_of(store->select({.spaces = {space}})) == std::set<std::string>{"a"});
  CHECK(T::place().open()->list(space, "", 10).documents.size() == 1);
  store->put(large, {tensors});
  CHECK(T::place().open()->get(space, "b")->text.size() == 8'000'000);
}

TEST_CASE("addresses of stores") {
  const Address plain = parse_address("some/folder");
  CHECK(plain.scheme == "files");
  CHECK(plain.path == "some/folder");
  CHECK(parse_address("files:/a b").path == "/a b");
  CHECK(parse_address("files:///a").path == "/a");
  CHECK(parse_address("sqlite:a.db?x=1").path == "a.db");
  Address full = parse_address("postgresql://me%40x:p%3Aw%2F@[::1]:5433/base?sslmode=require&exact=5&empty=");
  CHECK(full.user == "me@x");
  CHECK(full.password == "p:w/");
  CHECK(full.host == "::1");
  CHECK(full.port == 5433);
  CHECK(full.path == "base");
  CHECK(full.take_number("exact", 1, 0, 10) == 5);
  CHECK(full.take("exact") == "");
  CHECK(full.take("sslmode") == "require");
  CHECK(full.shown().find("p:w") == std::string::npos);
  CHECK(parse_address("redis://localhost").port == 0);
  CHECK_KIND(parse_address(""), Kind::invalid);
  CHECK_KIND(parse_address("redis://localhost:0"), Kind::invalid);
  CHECK_KIND(parse_address("redis://localhost:70000"), Kind::invalid);
  CHECK_KIND(parse_address("redis://x?exact=a").take_number("exact", 1, 0, 10), Kind::invalid);
  CHECK_KIND(open_store("mysql://x"), Kind::invalid);
  CHECK_KIND(open_store("files:"), Kind::invalid);
  const Folder folder;
  CHECK_KIND(open_store("files:" + (folder.path / "a").string() + "?unknown=1"), Kind::invalid);
  CHECK_KIND(open_store("faiss:" + (folder.path / "b").string() + "?index=tree"), Kind::invalid);
  CHECK_KIND(open_store("redis://127.0.0.1:1/0?tensors=" + folder.path.string()), Kind::unavailable);
  CHECK_KIND(open_store("postgresql://127.0.0.1:1/x?tensors=" + folder.path.string()), Kind::unavailable);
  CHECK_KIND(open_store("neo4j://127.0.0.1:1/x?tensors=" + folder.path.string()), Kind::unavailable);
}

TEST_CASE("filters that are none are refused") {
  const auto refused = [](const char* text) { CHECK_KIND(parse_filter(parse_json(text, "filter")), Kind::invalid); };
  for (const char* text :
       {"[]",
        "1",
        R"({"a": null})",
        R"({"a": [1]})",
        R"({"a": {}})",
        R"({"a": {"like": "x"}})",
        R"({"a": {"in": []}})",
        R"({"a": {"in": 1}})",
        R"({"a": {"in": [1, "x"]}})",
        R"({"a": {"lt": "x"}})",
        R"({"a": {"gt": true}})",
        R"({"a": {"eq": {}}})"}) {
    CAPTURE(text);
    refused(text);
  }
}
