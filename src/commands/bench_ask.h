// Questions whose answers are known, many at once through the engine: how likely
// a model finds each answer, and how long it takes. One thread; calls block.
#pragma once

#include "library/mlx_parallm.h"
#include "mind/citations.h"

namespace parallm {

struct Question {
  std::vector<int32_t> prompt;
  std::vector<int32_t> answer; // at least one id
};

/** The answer's ids are what `text` + `answer` has beyond `text`. `special`: BOS first, where the model has one. */
Question make_question(const Tokenizer& tokenizer, const std::string& text, const std::string& answer, bool special);

/** What a model thinks of an answer, each token of which it is given before it says what follows. */
struct Judged {
  bool exact = false; // each token is the most likely one, so that greedy decoding gives the answer
  double logprob = 0; // mean over the answer's tokens
  std::vector<Scored> steps; // of each token
  AnswerUse use; // of memories, with RecallHow::record
};

/** Memories of the i-th question. */
using RecallOf = std::function<Recall(size_t)>;

/** `top`: how many of the most likely tokens each step tells. `progress` is called after each. */
std::vector<Judged> judge(
    LanguageModel& model,
    const std::vector<Question>& questions,
    const RecallOf& recall,
    int top = 1,
    const std::function<void()>& progress = [] {});

/** The greatest difference of a token's log probability: of the answers' tokens, and of the most likely ones that both
 * tell. */
double greatest_difference(const std::vector<Judged>& a, const std::vector<Judged>& b);

/** What the requests generate, in their order. */
std::vector<std::string> generate_all(LanguageModel& model, std::vector<Request> requests);

struct Speed {
  double first_token = 0; // seconds, from choosing memories on
  double tokens_per_second = 0; // after it
};

/** Of single questions, one after another, that share no KV with anything before; medians. */
Speed measure(
    LanguageModel& model,
    const std::vector<Question>& questions,
    const RecallOf& recall,
    size_t count,
    int tokens);

} // namespace parallm
