// Processes that are killed, processes side by side, and servers that go away.

#include "base/error.h"
#include "store/helpers.h"

#include <doctest/doctest.h>

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <future>
#include <random>
#include <thread>

using namespace parallm;
using namespace places;
namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

namespace {

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/** A document whose every part tells `value`, so that parts of two versions can't be taken for one. */
Document numbered(const std::string& space, const std::string& id, int value) {
  Document document = some_document(space, id);
  document.metadata = {{"value", value}};
  document.text = std::string(5000, 'x') + std::to_string(value);
  document.token_ids.assign(1000, value);
  document.embedding = {1, static_cast<float>(value)};
  return document;
}

std::string tensors_of(int value) {
  return std::string(100'000, static_cast<char>('a' + value % 26)) + std::to_string(value);
}

void check_whole(Store& store, const Document& light) {
  const int value = light.metadata.at("value").to_number<int>();
  const auto found = store.get(light.space, light.id);
  REQUIRE(found);
  const Document expected = numbered(light.space, light.id, value);
  CHECK(found->text == expected.text);
  CHECK(found->token_ids == expected.token_ids);
  CHECK(found->embedding == expected.embedding);
  CHECK(bytes_of(store.tensors(light.uid, "f")) == tensors_of(value));
}

std::vector<std::string> lines_of(const fs::path& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line) && !in.eof();) { // without an unfinished last one
    lines.push_back(line);
  }
  return lines;
}

std::unique_ptr<Process> child(Place& place, const std::string& space, const std::string& name, const fs::path& said) {
  return std::make_unique<Process>(
      this_program("child: puts documents without end"),
      Process::Options{
          .log = said.string() + ".log",
          .environment = {
              {"PARALLM_CHILD_URL", place.url()},
              {"PARALLM_CHILD_SPACE", space},
              {"PARALLM_CHILD_NAME", name},
              {"PARALLM_CHILD_SAID", said.string()}}});
}

} // namespace

/** What `child` runs: says each document that put has taken. Every third replaces the same id. */
TEST_CASE("child: puts documents without end" * doctest::skip()) {
  const std::string url = variable("PARALLM_CHILD_URL"), space = variable("PARALLM_CHILD_SPACE");
  REQUIRE(!url.empty());
  const auto store = open_store(url);
  std::ofstream said(variable("PARALLM_CHILD_SAID"), std::ios::app);
  for (int i = 1;; ++i) {
    const std::string id = variable("PARALLM_CHILD_NAME") + (i % 3 == 0 ? "same" : std::to_string(i));
    const std::string tensors = tensors_of(i);
    store->put(numbered(space, id, i), {tensors});
    said << id << ' ' << i << std::endl;
  }
}

TEST_CASE_TEMPLATE(
    "store: kill -9 in the middle of a put leaves whole documents",
    T,
    Files,
    Sqlite,
    Postgres,
    Redis,
    Neo4j) {
  OPEN_OR_RETURN(T);
  const Folder folder;
  std::mt19937 random(5);
  size_t puts = 0;
  for (int round = 0; round < 4; ++round) {
    const std::string space = new_space("killed");
    const fs::path said = folder.path / ("said" + std::to_string(round));
    const auto process = child(T::place(), space, "d", said);
    const auto end = Clock::now() + 30s;
    while (lines_of(said).size() < 4 && Clock::now() < end) {
      std::this_thread::sleep_for(1ms);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000));
    process->kill();
    const std::vector<std::string> lines = lines_of(said);
    REQUIRE(lines.size() >= 4);
    puts += lines.size();
    const auto later = T::place().open(); // as the next server does, beside one that was there all the time
    for (Store* reader : {store.get(), later.get()}) {
      int same = 0;
      for (const std::string& line : lines) {
        const std::string id = line.substr(0, line.find(' '));
        const auto found = reader->get(space, id);
        REQUIRE_MESSAGE(found, id);
        same = id == "dsame" ? std::stoi(line.substr(line.find(' '))) : same;
      }
      const auto replaced = reader->get(space, "dsame");
      CHECK(replaced->metadata.at("value").to_number<int>() >= same);
      const Page page = reader->list(space, "", 1'000'000);
      CHECK(page.documents.size() >= lines.size() - lines.size() / 3);
      for (const Document& document : page.documents) {
        check_whole(*reader, document);
      }
    }
    later->put(numbered(space, "after", 1), {tensors_of(1)});
    CHECK(store->get(space, "after"));
  }
  MESSAGE(puts << " puts before 4 kills");
}

TEST_CASE_TEMPLATE("store: processes side by side lose nothing of each other", T, Files, Sqlite) {
  OPEN_OR_RETURN(T);
  const Folder folder;
  const std::string space = new_space("together");
  std::vector<std::unique_ptr<Process>> processes;
  std::vector<fs::path> said;
  for (const char* name : {"a", "b", "c"}) {
    said.push_back(folder.path / name);
    processes.push_back(child(T::place(), space, name, said.back()));
  }
  const auto end = Clock::now() + 60s;
  // SQLite lets wait whom it likes: one may write a lot before another one gets its turns.
  for (size_t all = 0, fewest = 0; (all < 60 || fewest < 4) && Clock::now() < end;) {
    all = 0;
    fewest = SIZE_MAX;
    for (const fs::path& path : said) {
      const size_t lines = lines_of(path).size();
      all += lines;
      fewest = std::min(fewest, lines);
    }
    std::this_thread::sleep_for(5ms);
    store->select({.spaces = {space}, .contents = true});
  }
  for (const auto& process : processes) {
    process->kill();
  }
  const auto later = T::place().open();
  for (const fs::path& path : said) {
    CHECK(lines_of(path).size() >= 4);
    for (const std::string& line : lines_of(path)) {
      CHECK(later->get(space, line.substr(0, line.find(' '))));
    }
  }
  const auto documents = store->list(space, "", 100'000).documents;
  CHECK(documents.size() == later->list(space, "", 100'000).documents.size());
  for (const Document& document : documents) {
    check_whole(*store, document);
  }
}

TEST_CASE_TEMPLATE("store: servers that start at once on an empty place all get it", T, Files, Sqlite, Postgres) {
  OPEN_OR_RETURN(T);
  const Folder folder;
  for (int round = 0; round < 8; ++round) {
    const std::string name = "fresh" + std::to_string(round);
    std::string url = T::place().url();
    if (T::place().has_server()) {
      url += "&schema=" + name;
    } else {
      url = url.substr(0, url.find(':') + 1) + (folder.path / name / "store").string();
    }
    std::vector<std::future<void>> starting;
    for (int i = 0; i < 4; ++i) {
      starting.push_back(
          std::async(std::launch::async, [&url, i] { open_store(url)->put(some_document("s", std::to_string(i))); }));
    }
    for (auto& one : starting) {
      CHECK_NOTHROW(one.get());
    }
    CHECK(open_store(url)->list("s", "", 10).documents.size() == 4);
  }
}

TEST_CASE_TEMPLATE("store: a server that goes away is an error 503, and is found again", T, Postgres, Redis, Neo4j) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("away");
  store->put(numbered(space, "a", 1), {tensors_of(1)});
  const uint64_t version = store->version(space);
  const std::string url = T::place().url();
  std::atomic<bool> done = false;
  std::atomic<int> good = 0, refused = 0, wrong = 0;
  {
    std::vector<std::future<void>> askers;
    struct End {
      std::atomic<bool>& done;
      ~End() {
        done = true;
      }
    };
    for (int i = 0; i < 3; ++i) {
      askers.push_back(std::async(std::launch::async, [&] {
        while (!done) {
          try {
            const Selection found = store->select({.spaces = {space}, .embedding = {1, 1}, .top = 3, .contents = true});
            wrong += found.hits.size() != 1;
            ++good;
          } catch (const Error& error) {
            wrong += error.kind != Kind::unavailable;
            ++refused;
            std::this_thread::sleep_for(20ms);
          }
        }
      }));
    }
    const End end{done};
    std::this_thread::sleep_for(200ms);
    T::place().stop(); // in the middle of their requests
    const auto gone = Clock::now();
    CHECK_KIND(store->put(numbered(space, "b", 2), {tensors_of(2)}), Kind::unavailable);
    CHECK_KIND(store->get(space, "a"), Kind::unavailable);
    CHECK_KIND(store->namespaces(), Kind::unavailable);
    CHECK_KIND(open_store(url), Kind::unavailable);
    CHECK(Clock::now() - gone < 10s);
    CHECK(store->tensor_bytes() > 0); // what is on this machine is still there
    const int before = good;
    T::place().start();
    const auto back = Clock::now() + 20s;
    while (good < before + 20 && Clock::now() < back) {
      std::this_thread::sleep_for(10ms);
    }
    CHECK(good >= before + 20);
  }
  CHECK(refused > 0);
  CHECK(wrong == 0);
  CHECK(store->version(space) == version);
  check_whole(*store, store->list(space, "", 10).documents.at(0));
  CHECK(!store->get(space, "b"));
  store->put(numbered(space, "b", 3), {tensors_of(3)});
  check_whole(*store, store->list(space, "a", 10).documents.at(0));
}

TEST_CASE_TEMPLATE("store: a server that hangs is an error 503 in time", T, Redis, Neo4j) {
  OPEN_OR_RETURN(T);
  const std::string space = new_space("hangs");
  const auto hasty = open_store(T::place().url() + "&timeout_ms=2000");
  store->put(numbered(space, "a", 1), {tensors_of(1)});
  CHECK(store->get(space, "a")); // a server that has just started may take long for its first answer of a kind
  CHECK(hasty->get(space, "a"));
  T::place().signal(SIGSTOP);
  const auto begun = Clock::now();
  CHECK_KIND(hasty->get(space, "a"), Kind::unavailable);
  CHECK_KIND(hasty->get(space, "a"), Kind::unavailable);
  const auto taken = Clock::now() - begun;
  T::place().signal(SIGCONT);
  CHECK(taken < 8s);
  CHECK(store->get(space, "a"));
  std::this_thread::sleep_for(100ms);
  CHECK(hasty->get(space, "a"));
}
