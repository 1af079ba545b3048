// Which sentence an answer comes from, with the real model, where PARALLM_TEST_MODEL names it: attention's mass above
// its background says so.
#include "engine/background.h"
#include "engine/runner.h"
#include "library/memories.h"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>

using namespace parallm;

namespace {

struct Fact {
  const char* sentence;
  const char* question;
  const char* answer; // its beginning
};

// Of a world that no model has read of.
const std::vector<Fact> facts{
    {"The keeper of the Brannoch lighthouse is Tomas Veldt.",
     "Who is the keeper of the Brannoch lighthouse?",
     "The keeper of the Brannoch lighthouse is"},
    {"The old bridge over the river Osk was built in 1742.",
     "When was the old bridge over the river Osk built?",
     "The old bridge over the river Osk was built in"},
    {"The favourite dish of Queen Ilmara is pickled herring.",
     "What is the favourite dish of Queen Ilmara?",
     "The favourite dish of Queen Ilmara is"},
    {"The access code of the Kestrel vault is 5831.",
     "What is the access code of the Kestrel vault?",
     "The access code of the Kestrel vault is"},
    {"The capital of the island Morvane is Saltwick.",
     "What is the capital of the island Morvane?",
     "The capital of the island Morvane is"},
    {"Doctor Anneke Bruhl discovered the metal called tarnium.",
     "Which metal did Doctor Anneke Bruhl discover?",
     "Doctor Anneke Bruhl discovered the metal called"},
    {"The ship Gilded Wren sank near Cape Dorrow.",
     "Where did the ship Gilded Wren sink?",
     "The ship Gilded Wren sank near Cape"},
    {"The dog of the painter Ruben Falk is named Biscuit.",
     "What is the dog of the painter Ruben Falk named?",
     "The dog of the painter Ruben Falk is named"},
    {"The night train to Hallgrim leaves from platform nine.",
     "From which platform does the night train to Hallgrim leave?",
     "The night train to Hallgrim leaves from platform"},
    {"The flag of the city of Pellan is purple and silver.",
     "Which colours has the flag of the city of Pellan?",
     "The flag of the city of Pellan is"},
    {"The novel The Glass Orchard was written by Edda Thornquist.",
     "Who wrote the novel The Glass Orchard?",
     "The novel The Glass Orchard was written by"},
    {"The highest mountain of Varland is Mount Skarn.",
     "What is the highest mountain of Varland?",
     "The highest mountain of Varland is Mount"},
};

const std::vector<std::string> probes{
    "It was a bright cold day in April, and the clocks were striking",
    "To install the package, open a terminal and type the following command:",
    "The results of the experiment show that the temperature of the water rises",
    "Dear Sir or Madam, thank you very much for your letter of last week about",
};

const std::string filler =
    " Many people walked along the road that day, and some of them carried baskets of bread and apples to the market, "
    "while others simply enjoyed the sun and talked about the harvest of the year.";

/** These tokens, one after another. */
class Dictated : public TokenMask {
 public:
  explicit Dictated(std::vector<int32_t> ids) : ids_(std::move(ids)) {}
  void allowed(std::span<uint32_t> words) override {
    words[ids_.at(at_) / 32] |= 1u << (ids_[at_] % 32);
  }
  void accept(int32_t) override {
    ++at_;
  }

 private:
  std::vector<int32_t> ids_;
  size_t at_ = 0;
};

/** The text's sentence whose tokens have most of `masses`. */
size_t first(const std::vector<double>& masses, const std::vector<size_t>& ends) {
  std::vector<double> sums(ends.size());
  for (size_t n = 0, s = 0; n < masses.size(); ++n) {
    s += n == ends[s];
    sums[s] += masses[n];
  }
  return std::max_element(sums.begin(), sums.end()) - sums.begin();
}

std::vector<float> background_of(LanguageModel& model, const Recall& recall) {
  std::vector<std::vector<int32_t>> ids;
  for (const auto& probe : probes) {
    ids.push_back(model.tokenizer().encode(probe, true));
  }
  std::optional<std::vector<float>> done;
  model.engine()
      .run([&](Runner& runner) {
        auto& [memories, how] = *recall.memories;
        Background background(dynamic_cast<ModelRunner&>(runner).model(), mx::float16, memories, how, ids);
        while (!done) {
          done = background.step();
        }
      })
      .get();
  return *done;
}

} // namespace

TEST_CASE("citations: mass beyond the background names the sentence that an answer is in") {
  auto* path = std::getenv("PARALLM_TEST_MODEL");
  if (!path) {
    MESSAGE("PARALLM_TEST_MODEL is not set");
    return;
  }
  LanguageModel model(path, {.kv_cache_bytes = 1 << 26, .max_rows = 4, .extended_mind = true});
  const auto folder = std::filesystem::temp_directory_path() / "parallm_citations";
  std::filesystem::remove_all(folder);
  const auto memories = open_memories(model, {.store = "files:" + folder.string()});
  const auto encode = [&](const std::string& text) { return model.tokenizer().encode(text, false); };
  for (bool filled : {false, true}) {
    std::vector<int32_t> text;
    std::vector<size_t> ends;
    const auto add = [&](const std::vector<int32_t>& ids) {
      text.insert(text.end(), ids.begin(), ids.end());
      ends.push_back(text.size());
    };
    for (const Fact& fact : facts) {
      add(encode((text.empty() ? "" : " ") + std::string(fact.sentence)));
      if (filled) {
        add(encode(filler));
      }
    }
    memories->add_memories("facts", "all", text);
    for (bool contiguous : {false, true}) {
      RecallHow how{.top_k = 16, .contiguous = contiguous};
      how.record = true;
      auto recall = memories->recall("facts", {}, how);
      const auto background = background_of(model, recall);
      REQUIRE(background.size() == text.size());
      recall.background = std::make_shared<const std::vector<float>>(background);
      int right = 0, right_by_tokens = 0, right_by_mass = 0;
      for (size_t f = 0; f < facts.size(); ++f) {
        const auto& [sentence, question, begun] = facts[f];
        const auto answer = encode(std::string(sentence).substr(std::string(begun).size()));
        Request request;
        request.prompt = model.tokenizer().encode(fmt::format("Question: {}\nAnswer: {}", question, begun), true);
        request.max_tokens = static_cast<int>(answer.size()) - 1; // but the full stop
        request.sampling.ignore_eos = true;
        request.mask = std::make_shared<Dictated>(answer);
        request.recall = recall;
        auto stream = model.engine().generate(std::move(request));
        std::vector<double> by_tokens(text.size()), whole(text.size()), mass(text.size());
        Event event;
        do {
          event = stream.next();
          REQUIRE(event.token_use);
          CHECK(event.token_use->mass > 0.1);
          CHECK(event.token_use->mass < 1);
          for (const UsedMemory& used : event.token_use->memories) {
            by_tokens[used.memory] += cited_mass(used, 1, background[used.memory]);
          }
        } while (event.finish == Finish::none);
        REQUIRE(event.whole_use);
        for (const UsedMemory& used : event.whole_use->memories) {
          mass[used.memory] = used.mass;
          whole[used.memory] = cited_mass(used, event.whole_use->queries, background[used.memory]);
        }
        const size_t wanted = filled ? 2 * f : f;
        right += first(whole, ends) == wanted;
        right_by_tokens += first(by_tokens, ends) == wanted;
        right_by_mass += first(mass, ends) == wanted;
      }
      MESSAGE(
          text.size(),
          std::string(contiguous ? " tokens, contiguous: " : " tokens, at 0: "),
          right,
          " of 12, by each token's most used ",
          right_by_tokens,
          ", by mass alone ",
          right_by_mass);
      CHECK(right >= 11);
      CHECK(right_by_tokens >= 11);
      CHECK(right_by_mass < right);
    }
  }
  std::filesystem::remove_all(folder);
}
