// The counterfactual WikiQA of arXiv 2406.02332: documents whose answers were changed, so that what a model knows by
// itself is wrong. Its file, wikiqa-edited.json, is not ours to bundle: a JSON list of {"split": "2k", "prompt": what
// is to be done, "question": "Question: ...", "context": the changed document, "answer": a string or a list of them};
// other keys are passed over. Scored as there: the answer stands, upper and lower case being the same, in 30 greedy
// tokens.
#pragma once

#include "commands/bench_report.h"
#include "library/memories.h"

namespace parallm {

struct WikiQuestion {
  std::string split;
  std::string prompt;
  std::string question;
  std::string context;
  std::vector<std::string> answers; // one at least; any will do
};

/** `limit`: of each split; 0: all. Errors: invalid, naming the file and the entry. */
std::vector<WikiQuestion> read_wikiqa(const std::string& path, int limit);

/** A table with a column a split: without the document, with it in the prompt, and as memories in each of these ways.
 */
void report_wikiqa(
    LanguageModel& model,
    MemoryManager& memories,
    const std::vector<WikiQuestion>& questions,
    const std::vector<std::pair<std::string, RecallHow>>& ways,
    Report& report,
    const std::function<void(size_t done, size_t total)>& progress);

} // namespace parallm
