// MemoryManager with a fake model and the files store.
#include "unit/fake_encoder.h"

#include <thread>

using namespace parallm;
using namespace parallm::test;

namespace {

struct Mind {
  explicit Mind(size_t ram_bytes = 1 << 20, size_t document_tokens = 1000)
      : manager(make_manager(model, tokenizer, folder, ram_bytes, document_tokens)) {}

  /** Another manager on the same store. */
  void reopen(const std::string& fingerprint = "one") {
    manager.reset();
    model = std::make_shared<FakeModel>();
    model->fingerprint = fingerprint;
    manager = make_manager(model, tokenizer, folder);
  }

  std::vector<AddedDocument> add(const std::string& id, const std::string& text, const std::string& space = "s") {
    AddDocuments add{.space = space, .documents = {}};
    add.documents.push_back({.id = id, .text = text, .ids = {}});
    return manager->add(std::move(add));
  }

  Folder folder;
  Tokenizer tokenizer{byte_level()};
  std::shared_ptr<FakeModel> model = std::make_shared<FakeModel>();
  std::unique_ptr<MemoryManager> manager;
};

AddDocuments texts(const std::vector<std::string>& all) {
  AddDocuments add{.space = "s", .documents = {}};
  for (const std::string& text : all) {
    add.documents.push_back({.id = std::to_string(add.documents.size()), .text = text, .ids = {}});
  }
  return add;
}

RecallDocuments all_of(const std::string& space) {
  RecallDocuments wanted;
  wanted.spaces = {space};
  return wanted;
}

std::vector<int32_t> ids_of(const Recall& recall) {
  std::vector<int32_t> out;
  for (const auto& part : recall.memories->memories->parts) {
    out.insert(out.end(), part->tokens.begin(), part->tokens.end());
  }
  return out;
}

std::vector<int32_t> bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

/** What `call` throws. */
Error thrown(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  FAIL("nothing was thrown");
  return {Kind::internal, "", ""};
}

} // namespace

TEST_CASE("mind: documents are read, kept and given to requests, by namespace") {
  Mind mind;
  const auto added = mind.add("b", "xyz");
  REQUIRE(added.size() == 1);
  CHECK(added[0].tokens == 3);
  CHECK(added[0].bytes == 300);
  mind.add("a", "uv");
  mind.add("a", "other", "t");
  const MemoryView view = mind.manager->recall(all_of("s"));
  CHECK(ids_of(view.recall) == bytes_of("uvxyz")); // by id
  CHECK(view.tokens == 5);
  REQUIRE(view.documents.size() == 2);
  CHECK(view.documents[1].id == "b");
  CHECK(view.documents[1].begin == 2);
  CHECK(mind.model->readings[0].ids == std::vector<int32_t>{fake_bos, 'x', 'y', 'z'});
  CHECK(mind.model->readings[0].dropped_first == 1);
  mind.manager->store().erase("s", {"a"});
  CHECK(ids_of(mind.manager->recall(all_of("s")).recall) == bytes_of("xyz"));
  CHECK(ids_of(view.recall) == bytes_of("uvxyz")); // who has them keeps them
  CHECK(thrown([&] { mind.manager->recall(all_of("none")); }).param == "memory.namespaces");
}

TEST_CASE("mind: what is wrong with documents is told by field, before anything is read") {
  Mind mind(1 << 20, 10);
  const auto with = [&](const std::function<void(AddDocuments&)>& change) {
    AddDocuments add = texts({"one", "two"});
    change(add);
    return thrown([&] { mind.manager->submit(std::move(add)); });
  };
  const auto says = [&](const std::string& param, Kind kind, const std::function<void(AddDocuments&)>& change) {
    const Error error = with(change);
    CHECK_MESSAGE(error.param == param, error.what());
    CHECK_MESSAGE(error.kind == kind, error.what());
  };
  const auto invalid = [&](const std::string& param, const std::function<void(AddDocuments&)>& change) {
    says(param, Kind::invalid, change);
  };
  invalid("documents", [](auto& add) { add.documents.clear(); });
  invalid("documents[1].text", [](auto& add) { add.documents[1].ids = {5}; });
  invalid("documents[1].text", [](auto& add) { add.documents[1].text = std::nullopt; });
  invalid("documents[1].text", [](auto& add) { add.documents[1].text = "<|end|>"; });
  invalid("documents[1].text", [](auto& add) { add.documents[1].text = std::string("a\0b", 3); });
  invalid("documents[0].token_ids", [](auto& add) { add.documents[0] = {.text = std::nullopt, .ids = {5, 264}}; });
  invalid("documents[0].token_ids", [](auto& add) { add.documents[0] = {.text = std::nullopt, .ids = {-1}}; });
  invalid("documents[0].token_ids", [](auto& add) { add.documents[0] = {.text = std::nullopt, .ids = {261}}; });
  invalid("documents[1].id", [](auto& add) { add.documents[1].id = "0"; });
  invalid("documents[0].id", [](auto& add) { add.documents[0].id = std::string(513, 'x'); });
  invalid("documents[0].id", [](auto& add) { add.documents[0].id = "a\nb"; });
  invalid("documents[0].metadata", [](auto& add) { add.documents[0].metadata = {{"a", {{"b", 1}}}}; });
  invalid("documents[0].metadata", [](auto& add) { add.documents[0].metadata = {{"a", std::string(20'000, 'x')}}; });
  invalid("documents[0].metadata", [](auto& add) {
    for (int i = 0; i < 65; ++i) {
      add.documents[0].metadata[std::to_string(i)] = i;
    }
  });
  invalid("namespace", [](auto& add) { add.space = ""; });
  invalid("stride", [](auto& add) { add.how = {.stride = 9, .max_length = 8}; });
  invalid("max_length", [](auto& add) { add.how = {.max_length = FakeEncoder::context + 1}; });
  invalid("header", [](auto& add) { add.how = {.header = "12345678", .max_length = 8}; });
  invalid("header", [](auto& add) { add.how.header = std::string(2000, 'x'); });
  says("documents[1]", Kind::too_large, [](auto& add) { add.documents[1].text = std::string(11, 'x'); });
  CHECK(mind.model->count() == 0);
  CHECK(mind.manager->store().namespaces().empty());
}

TEST_CASE("mind: a document that could never be given to a request is refused") {
  Mind mind(10 * FakeEncoder::bytes_of_token);
  CHECK(mind.add("a", std::string(10, 'x'))[0].tokens == 10);
  const Error error = thrown([&] { mind.add("b", std::string(11, 'x')); });
  CHECK(error.kind == Kind::too_large);
  CHECK(error.param == "documents[0]");
  CHECK(mind.model->count() == 1);
}

TEST_CASE("mind: if_exists") {
  Mind mind;
  mind.add("0", "old");
  AddDocuments add = texts({"new"});
  add.if_exists = IfExists::fail;
  CHECK(thrown([&] { mind.manager->add(add); }).kind == Kind::conflict);
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("old"));
  add.if_exists = IfExists::replace;
  mind.manager->add(add);
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("new"));
}

TEST_CASE("mind: a header is read before each document; packed ones are read at once, each behind its neighbours") {
  Mind mind;
  AddDocuments add = texts({"abc", "de", "f"});
  add.how.header = "H:";
  mind.manager->add(add);
  REQUIRE(mind.model->count() == 3);
  CHECK(mind.model->readings[1].ids == std::vector<int32_t>{fake_bos, 'H', ':', 'd', 'e'});
  CHECK(mind.model->readings[1].dropped_first == 3);
  add.pack = true;
  mind.manager->add(add);
  REQUIRE(mind.model->count() == 4);
  CHECK(
      mind.model->readings[3].ids ==
      std::vector<int32_t>{fake_bos, 'H', ':', 'a', 'b', 'c', '\n', 'd', 'e', '\n', 'f'});
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("abcdef"));
  // Read again alone, it has the same neighbours before it.
  mind.reopen("two");
  CHECK(ids_of(mind.manager->recall("s", {"2"})) == bytes_of("f"));
  REQUIRE(mind.model->count() == 1);
  CHECK(
      mind.model->readings[0].ids ==
      std::vector<int32_t>{fake_bos, 'H', ':', 'a', 'b', 'c', '\n', 'd', 'e', '\n', 'f'});
  CHECK(mind.model->readings[0].dropped_first == 10);
}

TEST_CASE("mind: what this model read comes from the disk, what another read is read again, once") {
  Mind mind;
  mind.add("a", "abc");
  mind.reopen();
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("abc"));
  CHECK(mind.model->opened == 1);
  CHECK(mind.model->count() == 0);
  mind.reopen("two");
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("abc"));
  CHECK(mind.model->count() == 1);
  mind.reopen("two");
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("abc"));
  CHECK(mind.model->opened == 1);
  CHECK(mind.model->count() == 0);
}

TEST_CASE("mind: under another tokenizer a text is read anew, and token ids are refused") {
  Mind mind;
  mind.add("text", "abc");
  mind.manager->add_memories("ids", "a", {'x', 'y'});
  mind.manager.reset();
  mind.model->fingerprint = "two";
  mind.tokenizer =
      Tokenizer(byte_level(), Additions{.tokens = {{.content = "abc"}}, .special = {}, .ends = std::nullopt});
  mind.manager = make_manager(mind.model, mind.tokenizer, mind.folder);
  CHECK(mind.manager->recall(all_of("s")).tokens >= 1);
  const Error error = thrown([&] { mind.manager->recall("ids"); });
  CHECK(error.kind == Kind::conflict);
}

TEST_CASE("mind: several requests that need the same document have it read once") {
  Mind mind;
  mind.add("a", "abcdefgh");
  mind.reopen("two");
  mind.model->hold();
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&] { right += ids_of(mind.manager->recall("s")) == bytes_of("abcdefgh"); });
  }
  mind.model->wait_reading(1);
  mind.model->let_go();
  for (auto& thread : threads) {
    thread.join();
  }
  CHECK(right == 6);
  CHECK(mind.model->count() == 1);
}

TEST_CASE("mind: a long reading holds up no request for other documents") {
  Mind mind;
  mind.add("long", "abcdefgh", "long");
  mind.add("short", "xy", "short");
  mind.reopen("two");
  mind.model->hold();
  mind.model->on_read = [&](const Reading& reading) {
    if (reading.ids.back() == 'y') {
      mind.model->let_go();
    }
  };
  std::thread slow([&] { CHECK(ids_of(mind.manager->recall("long")) == bytes_of("abcdefgh")); });
  mind.model->wait_reading(1);
  CHECK(ids_of(mind.manager->recall("short")) == bytes_of("xy"));
  slow.join();
}

TEST_CASE("mind: a document that is replaced while a request reads it is found in its new version") {
  Mind mind;
  mind.add("a", "old");
  mind.reopen("two");
  std::atomic<int> replaced = 0;
  mind.model->on_read = [&](const Reading& reading) {
    if (reading.ids.back() == 'd' && replaced++ == 0) { // its record goes, and with it what was made of it
      mind.add("a", "new");
    }
  };
  MemoryView view = mind.manager->recall(all_of("s"));
  CHECK(ids_of(view.recall) == bytes_of("old")); // it had its text by then
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("new"));
}

TEST_CASE("mind: a file that can't be opened is read again, or its document is found in its new version") {
  Mind mind;
  mind.add("a", "old");
  mind.reopen();
  int opened = 0;
  mind.model->on_open = [&] {
    if (opened++ == 0) {
      fail(Kind::invalid, "[test] no such file");
    }
  };
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("old"));
  CHECK(mind.model->count() == 1);
  mind.reopen();
  mind.model->on_open = [&] {
    mind.add("a", "new");
    fail(Kind::invalid, "[test] no such file");
  };
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("new"));
}

TEST_CASE("mind: the shelf is bounded, and what was used last stays") {
  Mind mind(10 * FakeEncoder::bytes_of_token);
  for (const char* id : {"a", "b", "c"}) {
    mind.add(id, std::string(3, id[0]));
  }
  CHECK(mind.manager->stats().ram_bytes == 900);
  mind.manager->recall("s", {"a"});
  mind.add("d", "ddd"); // b goes
  CHECK(mind.manager->stats().ram_bytes == 900);
  CHECK(mind.manager->stats().ram_documents == 3);
  mind.manager->recall("s", {"a"});
  CHECK(mind.manager->stats().loads == 0);
  mind.manager->recall("s", {"b"});
  CHECK(mind.manager->stats().loads == 1);
  CHECK(mind.manager->stats().ram_bytes <= mind.manager->stats().ram_limit);
  const Error error = thrown([&] { mind.manager->recall("s"); }); // 12 tokens
  CHECK(error.kind == Kind::too_large);
  CHECK(error.param == "memory");
}

TEST_CASE("mind: what running requests hold is bounded too") {
  Mind mind(10 * FakeEncoder::bytes_of_token);
  for (const char* id : {"a", "b", "c"}) {
    mind.add(id, std::string(8, id[0]));
  }
  auto a = std::make_unique<Recall>(mind.manager->recall("s", {"a"}));
  const Recall b = mind.manager->recall("s", {"b"});
  const Recall again = mind.manager->recall("s", {"a"}); // shared
  CHECK(again.memories->memories == a->memories->memories);
  CHECK(mind.manager->stats().joined_bytes == 1600);
  CHECK(thrown([&] { mind.manager->recall("s", {"c"}); }).kind == Kind::busy);
  {
    const Recall gone = std::move(*a);
    a.reset();
  }
  CHECK(thrown([&] { mind.manager->recall("s", {"c"}); }).kind == Kind::busy); // `again` has them
}

TEST_CASE("mind: what no request holds any more makes room") {
  Mind mind(10 * FakeEncoder::bytes_of_token);
  for (int i = 0; i < 8; ++i) {
    mind.add(std::to_string(i), std::string(8, static_cast<char>('a' + i)));
  }
  for (int i = 0; i < 8; ++i) {
    CHECK(mind.manager->recall("s", {std::to_string(i)}).memories);
    CHECK(mind.manager->stats().joined_bytes <= 2 * mind.manager->stats().ram_limit);
  }
}

TEST_CASE("mind: documents in RAM for one request alone") {
  Mind mind;
  RecallDocuments wanted;
  wanted.inlined.push_back({.id = "mine", .text = "abc", .ids = {}});
  const MemoryView view = mind.manager->recall(wanted);
  CHECK(ids_of(view.recall) == bytes_of("abc"));
  CHECK(view.documents.at(0).space.empty());
  mind.manager->recall(wanted);
  CHECK(mind.model->count() == 1); // still on the shelf
  CHECK(mind.manager->store().namespaces().empty());
  wanted.inlined[0].text = "";
  CHECK(thrown([&] { mind.manager->recall(wanted); }).param == "memory.inline[0].text");
}

TEST_CASE("mind: the most similar documents, and queries") {
  Mind mind;
  mind.add("a", "aaaa");
  mind.add("b", "bbbb");
  RecallDocuments wanted = all_of("s");
  wanted.most = 1;
  wanted.prompt = bytes_of("bab bbb");
  CHECK(ids_of(mind.manager->recall(wanted).recall) == bytes_of("bbbb"));
  const auto found = mind.manager->query({"s"}, {}, bytes_of("aa"), 10);
  REQUIRE(found.size() == 2);
  CHECK(found[0].document.id == "a");
  CHECK(found[0].similarity.value() > found[1].similarity.value());
  CHECK(thrown([&] { mind.manager->query({"none"}, {}, bytes_of("aa"), 10); }).kind == Kind::not_found);
  CHECK(thrown([&] { mind.manager->query({"s", "s"}, {}, bytes_of("aa"), 10); }).param == "namespaces");
  CHECK(thrown([&] { mind.manager->query({"s"}, {}, {fake_bos}, 10); }).param == "input");
  mind.reopen("two"); // whose vectors are others
  CHECK_FALSE(mind.manager->query({"s"}, {}, bytes_of("aa"), 10).at(0).similarity);
}

TEST_CASE("mind: the end gives up what is being read, for jobs and for requests") {
  Mind mind;
  mind.add("a", "abcdefgh");
  mind.reopen("two");
  mind.model->hold();
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) { // one reads, two wait for it
    threads.emplace_back([&] { CHECK(thrown([&] { mind.manager->recall("s"); }).kind == Kind::unavailable); });
  }
  mind.model->wait_reading(1);
  std::vector<std::future<Error>> jobs;
  for (const char* text : {"first", "second", "third"}) {
    jobs.push_back(std::async(std::launch::async, [&mind, text] { return thrown([&] { mind.add(text, text); }); }));
  }
  mind.model->wait_reading(2);
  while (mind.manager->jobs().count() < 3) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  mind.manager->stop();
  for (auto& thread : threads) {
    thread.join();
  }
  for (auto& job : jobs) {
    CHECK(job.get().kind == Kind::unavailable);
  }
  CHECK(mind.model->reading == 0);
}

TEST_CASE("mind: a cancelled job leaves whole documents") {
  Mind mind;
  std::atomic<int> read = 0;
  mind.model->on_read = [&](const Reading&) {
    if (++read == 3) {
      mind.model->hold();
    }
  };
  std::promise<JobState> done;
  const std::string id =
      mind.manager->submit(texts({"aa", "bb", "cc", "dd"}), [&](const JobState& job) { done.set_value(job); });
  while (read < 3) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(mind.manager->jobs().find(id)->documents_done == 2);
  CHECK(mind.manager->jobs().cancel(id));
  const JobState job = done.get_future().get();
  mind.model->let_go();
  CHECK(job.status == JobState::Status::cancelled);
  CHECK(job.documents.size() == 2);
  CHECK(ids_of(mind.manager->recall("s")) == bytes_of("aabb"));
}
