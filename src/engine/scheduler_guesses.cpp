// The scheduler's part in speculative decoding: which rows guess in a step, and
// what comes of it.
#include "engine/scheduler.h"

#include <algorithm>

namespace parallm {

/** Of a row with nothing unread. A row with a grammar, or with positions that may
 * be computed again, makes none: it goes on one token at a time. */
int Scheduler::most_guesses(const Row& row) const {
  return row.waits() ? 0 : std::min(options_.guesses, row.request.max_tokens - row.sampled - 1);
}

/** How many guesses are best in a next step: that is launched once all tokens are
 * read (`waited`), so that what follows them is looked up; or, while some are
 * unread, that would have to wait for them. */
int Scheduler::choose_guesses(bool waited) const {
  if (options_.guesses == 0) {
    return 0;
  }
  std::vector<Prospect> prospects;
  for (const auto& [number, row] : rows_) {
    if (!row.decodes()) {
      continue;
    }
    Prospect prospect{most_guesses(row), confidence_.of(Confidence::draft_model)};
    if (!options_.draft_model) {
      const int found = row.lookup.guesses.size();
      prospect = waited ? Prospect{std::min(prospect.most, found), confidence_.of(row.lookup.matched)}
                        : Prospect{prospect.most, row.luck};
    }
    prospects.push_back(prospect);
  }
  const StepShape plain{.tokens = static_cast<int>(prospects.size()), .waited = waited};
  return best_guesses(plain, prospects, options_.draft_model, cost_);
}

/** Adds at most `count` guesses to the row's step, as far as there is room that
 * no other row needs. */
void Scheduler::guess(Row& row, int count, RowStep& step, Part& part) {
  const auto& found = row.lookup.guesses;
  if (!options_.draft_model) {
    count = std::min<int>(count, found.size());
  }
  while (static_cast<int>(row.blocks.size()) * options_.block_size < row.placed + count) {
    auto block = blocks_.free() - blocks_.idle() > options_.max_rows ? take_block() : std::nullopt;
    if (!block) {
      count = static_cast<int>(row.blocks.size()) * options_.block_size - row.placed;
      break;
    }
    row.blocks.push_back(*block);
  }
  if (count <= 0) {
    return;
  }
  if (!options_.draft_model) {
    step.ids.insert(step.ids.end(), found.begin(), found.begin() + count);
  }
  step.guesses = part.guesses = count;
  part.reason = options_.draft_model ? Confidence::draft_model : row.lookup.matched;
  step.count += count;
  step.blocks = row.blocks;
  row.placed += count;
  row.sampled += count;
}

/** Gives the draft model what it has yet to read. False: it is not done with
 * it: `budget` bounds what rows with a backlog read in one step. */
bool Scheduler::read_draft(Row& row, RowStep& step, int& budget) {
  const int known = row.tokens.size();
  int count = known - row.drafted;
  if (count > 2) { // two are what steps with guesses leave
    count = std::min(count, budget);
    budget -= count;
  }
  if (count == 0) {
    return false;
  }
  step.draft_start = row.drafted;
  step.draft_ids.assign(row.tokens.begin() + row.drafted, row.tokens.begin() + row.drafted + count);
  row.drafted += count;
  const int size = options_.block_size;
  for (int block = step.draft_start / size; (block + 1) * size <= row.drafted; ++block) {
    drafted_[row.blocks[block]] = true;
  }
  return row.drafted == known;
}

/** What the step's guesses were worth; takes the wrong ones back. */
void Scheduler::judge(Row& row, const Part& part, const std::vector<Scored>& sampled) {
  const int right = static_cast<int>(sampled.size()) - 1;
  if (options_.guesses > 0 && !options_.draft_model) {
    const auto& guesses = row.lookup.guesses;
    const bool lucky = !guesses.empty() && guesses[0] == sampled[0].token.id;
    row.luck += 0.2 * (lucky - row.luck);
    if (part.guesses == 0 && !guesses.empty()) {
      confidence_.learn(row.lookup.matched, 1, lucky);
    }
  }
  if (part.guesses == 0) {
    confidence_.drift(Confidence::draft_model);
    return;
  }
  confidence_.learn(part.reason, part.guesses, right);
  ++stats_.guess_steps;
  stats_.guessed_tokens += part.guesses;
  stats_.right_guesses += right;
  row.sampled -= part.guesses - right;
  if (row.slot >= 0) { // else it was preempted and has no position any more
    row.placed -= part.guesses - right;
    // The last guess was drawn, never read.
    row.drafted += options_.draft_model ? std::min(right, part.guesses - 1) : 0;
  }
}

} // namespace parallm
