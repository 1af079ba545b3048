// What memory-bench measures: facts that were made up, kept as memories in several ways, and questions about them. One
// thread; calls block.
#pragma once

#include "commands/bench_ask.h"
#include "commands/bench_facts.h"
#include "library/memories.h"

namespace parallm {

/** A way of keeping texts as memories. */
struct Keeping {
  std::string name;
  std::string what; // for people
  bool one_text = false; // all of them are one document, a line each
  std::string header; // AddDocuments
  bool pack = false;
};

const std::vector<Keeping>& keepings();
const Keeping& keeping_of(const std::string& name);

/** How a row's questions are asked. */
struct Asking {
  enum class With { nothing, prompt, memories };
  With with = With::memories;
  RecallHow how = {};
  std::string keeping = "packed"; // its name
  int most = 0; // documents, chosen by the question, that are memories or stand in the prompt; 0: all
};

struct Score {
  double exact = 0; // part of the answers, 0 to 1
  double logprob = 0; // of an answer's token: the mean over tokens, then over answers
  std::optional<double> cited; // part of the answers whose first citation is the fact asked about
};

class MemoryBench {
 public:
  /** Facts with `distractors` noise documents among them. `folder`: for the store; it must not exist. */
  MemoryBench(LanguageModel& model, const std::string& folder, int facts, int distractors, uint64_t seed);

  /** `cited`: with Score::cited, where there are memories. */
  Score score(const Asking& asking, bool cited, const std::function<void()>& progress);
  Speed speed(const Asking& asking, size_t count, int tokens);
  /** Bytes of keys and values that a question has of the texts, at most. */
  size_t bytes(const Asking& asking);
  struct Exactness {
    double difference = 0;
    std::optional<double> rounding; // none: the context is too short for it
  };
  /** What `contiguous` with all memories says of the answers beside the same text in the prompt, both without BOS: the
   * greatest difference of a token's log-probability; and of that prompt beside itself at later positions, which only
   * rounding tells apart. */
  Exactness exactness();

  /** One text of this many tokens, as memories and in the prompt. */
  struct Length {
    int tokens = 0;
    double reading = 0; // seconds, once
    Speed prompt, zero, contiguous;
  };
  Length length(int tokens, int top_k, size_t count, int output);

  int text_tokens() const {
    return static_cast<int>(text_ids_.size());
  }
  /** Whether what a question has fits into the model's context before it. */
  bool fits_prompt(const Asking& asking) const;

 private:
  /** The questions with something before each. */
  std::vector<Question> questions(const std::vector<int32_t>& before, bool special) const;
  std::vector<Question> asked(const Asking& asking);
  MemoryView view(const Asking& asking, size_t question, bool cited);
  /** Each question's memories; `views` keeps them for citations. */
  RecallOf recall_of(const Asking& asking, std::vector<MemoryView>* views = nullptr);
  bool is_cited(const Asking& asking, size_t question, const MemoryView& view, const AnswerUse& use) const;
  void keep(const std::string& keeping);

  LanguageModel& model_;
  std::unique_ptr<MemoryManager> memories_;
  std::vector<Fact> facts_;
  uint64_t seed_;
  std::vector<NewDocument> documents_; // facts and noise, mixed
  std::string text_; // all of them, a line each
  std::map<std::string, size_t> places_; // where in it each begins, by id
  std::vector<int32_t> text_ids_;
  std::vector<Question> bare_; // with nothing before them
  std::map<std::string, std::vector<AddedDocument>> kept_; // by Keeping::name
};

} // namespace parallm
