// MemoryManager with the real model, where PARALLM_TEST_MODEL names it: what a text says is known to whom it is given,
// and to nobody else.
#include "library/memories.h"

#include <doctest/doctest.h>

#include <cstdlib>

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

} // namespace

TEST_CASE("memories: a text is known while it is there, in its namespace alone") {
  auto* path = std::getenv("PARALLM_TEST_MODEL");
  if (!path) {
    MESSAGE("PARALLM_TEST_MODEL is not set");
    return;
  }
  LanguageModel model(path, {.kv_cache_bytes = 1 << 26, .max_rows = 4, .extended_mind = true});
  const auto read = [&](const std::string& text) { return model.tokenizer().encode(text, false); };
  const auto without = answer(model, {});
  CHECK(!says(model, without, "7392"));

  MemoryManager memories(model);
  CHECK(memories.add_memories("a", "door", read(door)) == static_cast<int>(read(door).size()));
  memories.add_memories("b", "door", read(other));
  CHECK(memories.ids("a") == std::vector<std::string>{"door"});
  CHECK(memories.ids("c").empty());
  CHECK(memories.recall("c", {}).memories == nullptr);
  CHECK_THROWS_AS(memories.recall("a", {"window"}), Error);
  CHECK_THROWS_AS(memories.recall("a", {}, {.top_k = -1}), Error);

  for (bool contiguous : {false, true}) {
    CAPTURE(contiguous);
    const RecallHow how{.top_k = contiguous ? 1000 : 16, .contiguous = contiguous};
    const auto a = memories.recall("a", {}, how), b = memories.recall("b", {}, how);
    CHECK(says(model, answer(model, a), "7392"));
    CHECK(says(model, answer(model, b), "5108"));
    CHECK(says(model, answer(model, a), "7392")); // the other's prefix is not its own
    CHECK(answer(model, {}) == without);
  }

  // Replaced, erased: who has a recall keeps its state.
  const auto old = memories.recall("a", {});
  memories.add_memories("a", "door", read(other));
  CHECK(says(model, answer(model, memories.recall("a", {"door"})), "5108"));
  CHECK(says(model, answer(model, old), "7392"));
  CHECK(memories.erase("a", "door"));
  CHECK(!memories.erase("a", "door"));
  CHECK(answer(model, memories.recall("a", {})) == without); // as if it had never been added
  CHECK(says(model, answer(model, old), "7392"));

  // Another manager's texts are others, whatever their names.
  {
    MemoryManager own(model), alike(model);
    own.add_memories("a", "door", read(door));
    alike.add_memories("a", "door", read(other));
    CHECK(says(model, answer(model, own.recall("a", {})), "7392"));
    CHECK(says(model, answer(model, alike.recall("a", {})), "5108"));
  }

  // A text beside which another was added and erased.
  memories.add_memories("a", "door", read(door));
  const auto alone = answer(model, memories.recall("a", {}));
  memories.add_memories("a", "second", read(other));
  CHECK(memories.ids("a").size() == 2);
  memories.erase("a", "second");
  CHECK(answer(model, memories.recall("a", {})) == alone);
}

TEST_CASE("memories: a model that was not loaded for them says so") {
  auto* path = std::getenv("PARALLM_TEST_MODEL");
  if (!path) {
    MESSAGE("PARALLM_TEST_MODEL is not set");
    return;
  }
  LanguageModel with(path, {.kv_cache_bytes = 1 << 26, .max_rows = 1, .extended_mind = true});
  LanguageModel model(path, {.kv_cache_bytes = 1 << 26, .max_rows = 1});
  CHECK_THROWS_AS(MemoryManager(model).add_memories("a", "door", {1, 2, 3}), Error);
  MemoryManager memories(with);
  memories.add_memories("a", "door", {1, 2, 3});
  CHECK_THROWS_AS(answer(model, memories.recall("a", {})), Error);
  CHECK_THROWS_AS(memories.add_memories("a", "door", {1, 2, 1 << 30}), Error);
  CHECK(memories.recall("a", {"door"}).before == 0);
  CHECK(memories.recall("a", {"door"}, {.contiguous = true}).before == 3);
}
