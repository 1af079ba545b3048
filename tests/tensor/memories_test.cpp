// MemoryManager with the real model, where PARALLM_TEST_MODEL names it: what a text says is known to whom it is given,
// and to nobody else, also after a restart and after the weights changed.
#include "library/memories.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>

using namespace parallm;

namespace {

const std::string door = "The code of the blue door is 7392. Whoever wants to open the blue door types 7392.";
const std::string other = "The code of the blue door is 5108. Whoever wants to open the blue door types 5108.";
// More than a KV block: prompts share their beginnings.
const std::string question =
    "Somebody stands before the blue door of the old house by the river and asks for its code. The code of the blue door is";

std::vector<int32_t> answer(LanguageModel& model, const Recall& recall) {
  Request request;
  request.prompt = model.tokenizer().encode(question, true);
  request.max_tokens = 8;
  request.sampling.temperature = 0;
  request.recall = recall;
  auto stream = model.engine().generate(std::move(request));
  std::vector<int32_t> ids;
  while (true) {
    Event event = stream.next();
    if (event.token) {
      ids.push_back(event.token->token.id);
    }
    if (event.finish != Finish::none) {
      return ids;
    }
  }
}

bool says(LanguageModel& model, const std::vector<int32_t>& ids, const std::string& what) {
  return model.tokenizer().decode(ids, true).find(what) != std::string::npos;
}

struct Folder {
  std::filesystem::path path;
  explicit Folder(const std::string& name) : path(std::filesystem::temp_directory_path() / ("parallm_" + name)) {
    std::filesystem::remove_all(path);
  }
  ~Folder() {
    std::filesystem::remove_all(path);
  }
  std::unique_ptr<MemoryManager> open(LanguageModel& model, size_t ram_bytes = 1 << 28) const {
    return open_memories(model, {.store = "files:" + path.string(), .ram_bytes = ram_bytes});
  }
};

std::string test_model() {
  auto* path = std::getenv("PARALLM_TEST_MODEL");
  if (!path) {
    MESSAGE("PARALLM_TEST_MODEL is not set");
  }
  return path ? path : "";
}

AddDocuments one(const std::string& space, const std::string& id, const std::string& text) {
  AddDocuments add{.space = space, .documents = {}};
  add.documents.push_back({.id = id, .text = text, .ids = {}});
  return add;
}

} // namespace

TEST_CASE("memories: a text is known while it is there, in its namespace alone") {
  const std::string path = test_model();
  if (path.empty()) {
    return;
  }
  LanguageModel model(path, {.kv_cache_bytes = 1 << 26, .max_rows = 4, .extended_mind = true});
  const auto read = [&](const std::string& text) { return model.tokenizer().encode(text, false); };
  const auto without = answer(model, {});
  CHECK(!says(model, without, "7392"));

  Folder folder("memories");
  const auto memories = folder.open(model);
  CHECK(memories->add_memories("a", "door", read(door)) == static_cast<int>(read(door).size()));
  memories->add_memories("b", "door", read(other));
  CHECK_THROWS_AS(memories->recall("c"), Error); // no such namespace
  CHECK_THROWS_AS(memories->recall("a", {"window"}), Error);
  CHECK_THROWS_AS(memories->recall("a", {}, {.top_k = -1}), Error);

  for (bool contiguous : {false, true}) {
    CAPTURE(contiguous);
    const RecallHow how{.top_k = contiguous ? 1000 : 16, .contiguous = contiguous};
    const auto a = memories->recall("a", {}, how), b = memories->recall("b", {}, how);
    CHECK(says(model, answer(model, a), "7392"));
    CHECK(says(model, answer(model, b), "5108"));
    CHECK(says(model, answer(model, a), "7392")); // the other's prefix is not its own
    CHECK(answer(model, {}) == without);
  }

  // Replaced, erased: who has a recall keeps its state.
  const auto old = memories->recall("a");
  memories->add_memories("a", "door", read(other));
  CHECK(says(model, answer(model, memories->recall("a", {"door"})), "5108"));
  CHECK(says(model, answer(model, old), "7392"));
  CHECK(memories->store().erase("a", {"door"}) == 1);
  CHECK(answer(model, memories->recall("a")) == without); // as if it had never been added
  CHECK(says(model, answer(model, old), "7392"));

  // A text beside which another was added and erased.
  memories->add_memories("a", "door", read(door));
  const auto alone = answer(model, memories->recall("a"));
  memories->add_memories("a", "second", read(other));
  memories->store().erase("a", {"second"});
  CHECK(answer(model, memories->recall("a")) == alone);
}

TEST_CASE("memories: kept, found again by another process, read again for other weights") {
  const std::string path = test_model();
  if (path.empty()) {
    return;
  }
  Folder folder("memories_kept");
  const LoadOptions load{.kv_cache_bytes = 1 << 26, .max_rows = 2, .extended_mind = true};
  std::vector<int32_t> first;
  {
    LanguageModel model(path, load);
    const auto memories = folder.open(model);
    const auto added = memories->add(one("a", "door", door));
    REQUIRE(added.size() == 1);
    CHECK(added[0].bytes > 1000u * added[0].tokens);
    first = answer(model, memories->recall("a"));
    CHECK(says(model, first, "7392"));
    CHECK(memories->stats().reads == 1);

    const auto again = folder.open(model); // nothing in its RAM
    CHECK(answer(model, again->recall("a")) == first);
    CHECK(again->stats().loads == 1);
    CHECK(again->stats().reads == 0);

    // Tensors that are gone are made again, and are what they were.
    std::filesystem::remove_all(folder.path / "tensors");
    const auto third = folder.open(model);
    CHECK(answer(model, third->recall("a")) == first);
    CHECK(third->stats().reads == 1);
    CHECK(answer(model, folder.open(model)->recall("a")) == first);

    // Where there is no room for a request's documents it is told so.
    const auto small = folder.open(model, 1000);
    CHECK_THROWS_WITH_AS(small->recall("a"), doctest::Contains("there is room for 1000"), Error);
  }
  LoadOptions wider = load;
  wider.dtype = "float32"; // other keys and values: those that are kept are stale
  LanguageModel model(path, wider);
  const auto memories = folder.open(model);
  CHECK(says(model, answer(model, memories->recall("a")), "7392"));
  CHECK(memories->stats().reads == 1);
  CHECK(memories->stats().loads == 0);
  CHECK(memories->store().get("a", "door")->fingerprint != memories->fingerprint());
  CHECK(folder.open(model)->recall("a").memories != nullptr);
}

TEST_CASE("memories: with kv_bits in codes, never mixed with those of another kind") {
  const std::string path = test_model();
  if (path.empty()) {
    return;
  }
  Folder folder("memories_coded");
  const LoadOptions wide{.kv_cache_bytes = 1 << 26, .max_rows = 2, .extended_mind = true};
  LoadOptions narrow = wide;
  narrow.kv_bits = 8;
  size_t bytes = 0;
  std::vector<int32_t> first;
  std::string fingerprint;
  {
    LanguageModel model(path, wide);
    const auto memories = folder.open(model);
    bytes = memories->add(one("a", "door", door)).at(0).bytes;
    first = answer(model, memories->recall("a"));
    fingerprint = memories->fingerprint();
  }
  {
    LanguageModel model(path, narrow);
    const auto memories = folder.open(model);
    CHECK(memories->fingerprint() != fingerprint);
    for (bool contiguous : {false, true}) {
      const auto recall = memories->recall("a", {}, {.top_k = 16, .contiguous = contiguous});
      CHECK(says(model, answer(model, recall), "7392"));
    }
    CHECK(memories->stats().loads == 0); // the 16-bit file is of another kind
    CHECK(memories->stats().reads == 1);
    const auto added = memories->add(one("b", "door", other));
    CHECK(16 * added.at(0).bytes <= 9 * bytes * added[0].tokens / model.tokenizer().encode(door, false).size());
    CHECK(memories->stats().ram_bytes < bytes + added[0].bytes);
    const auto known = answer(model, memories->recall("b"));
    CHECK(says(model, known, "5108"));

    const auto again = folder.open(model); // from the disk, bit for bit
    CHECK(answer(model, again->recall("b")) == known);
    CHECK(says(model, answer(model, again->recall("a")), "7392"));
    CHECK(again->stats().loads == 2);
    CHECK(again->stats().reads == 0);
  }
  // Beside a cache of 4 bits they are the same.
  narrow.kv_bits = 4;
  LanguageModel small(path, narrow);
  const auto same = folder.open(small);
  CHECK(same->recall("b").memories != nullptr);
  CHECK(same->stats().loads == 1);
  LanguageModel model(path, wide);
  const auto memories = folder.open(model);
  CHECK(answer(model, memories->recall("a")) == first); // its own file is still there
  CHECK(memories->stats().loads == 1);
  CHECK(memories->stats().reads == 0);
}

TEST_CASE("memories: short documents are packed, and found by what they say") {
  const std::string path = test_model();
  if (path.empty()) {
    return;
  }
  Folder folder("memories_packed");
  LanguageModel model(path, {.kv_cache_bytes = 1 << 26, .max_rows = 2, .extended_mind = true});
  const auto memories = folder.open(model);
  AddDocuments add{.space = "facts", .documents = {}, .pack = true};
  const std::vector<std::string> texts = {
      "The capital of Veldoria is Marnath.",
      "The cook of the ship Orlanta is called Brix.",
      "The blue door's code is 7392.",
      "Doctor Halvik's clinic opens at six in the morning.",
      "The river Tesk is four hundred kilometres long."};
  for (size_t i = 0; i < texts.size(); ++i) {
    add.documents.push_back({.id = std::to_string(i), .text = texts[i], .ids = {}});
  }
  memories->add(add);
  CHECK(memories->stats().reads == 1);
  const auto packed = answer(model, memories->recall("facts", {"2"}));
  std::filesystem::remove_all(folder.path / "tensors");
  const auto again = folder.open(model);
  CHECK(answer(model, again->recall("facts", {"2"})) == packed); // each is read behind the same neighbours
  CHECK(again->stats().reads == 1);

  const std::vector<std::string> questions = {
      "What is the capital of Veldoria?",
      "Who is the cook on the Orlanta?",
      "What is the code of the blue door?",
      "When does the clinic of Doctor Halvik open?",
      "How long is the river Tesk?"};
  for (size_t i = 0; i < questions.size(); ++i) {
    const auto found = memories->query({"facts"}, {}, model.tokenizer().encode(questions[i], false), 2);
    REQUIRE(found.size() == 2);
    CHECK(found[0].document.id == std::to_string(i));
    CHECK(found[0].document.text == texts[i]);
    CHECK(*found[0].similarity > *found[1].similarity);
  }

  RecallDocuments wanted{.spaces = {"facts"}, .cited = true};
  const MemoryView view = memories->recall(wanted);
  REQUIRE(view.documents.size() == texts.size());
  int at = 0;
  for (auto& document : view.documents) {
    CHECK(document.begin == at);
    at += document.tokens;
    REQUIRE(document.words);
    CHECK(document.words->spans.size() == static_cast<size_t>(document.tokens));
    CHECK(document.words->spans.front().begin == 0);
    CHECK(document.words->spans.back().end == document.words->text.size());
  }
  wanted.most = 1;
  wanted.prompt = model.tokenizer().encode(questions[2], false);
  REQUIRE(memories->recall(wanted).documents.size() == 1);
  CHECK(memories->recall(wanted).documents[0].id == "2");
}

TEST_CASE("memories: a model that was not loaded for them says so") {
  const std::string path = test_model();
  if (path.empty()) {
    return;
  }
  Folder folder("memories_wrong");
  LanguageModel with(path, {.kv_cache_bytes = 1 << 26, .max_rows = 1, .extended_mind = true});
  LanguageModel model(path, {.kv_cache_bytes = 1 << 26, .max_rows = 1});
  CHECK_THROWS_AS(folder.open(model), Error);
  const auto memories = folder.open(with);
  memories->add_memories("a", "door", {1, 2, 3, 20, 21, 22});
  CHECK_THROWS_AS(answer(model, memories->recall("a")), Error);
  CHECK_THROWS_AS(memories->add_memories("a", "door", {20, 21, 1 << 30}), Error);
  CHECK_THROWS_AS(memories->add_memories("a", "door", {1, 2}), Error); // special tokens alone
  CHECK(memories->recall("a", {"door"}).before == 0);
  CHECK(memories->recall("a", {"door"}, {.contiguous = true}).before == 3);
}
