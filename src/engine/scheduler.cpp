#include "engine/scheduler.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace parallm {

Scheduler::Scheduler(EngineOptions options, Guard guard)
    : options_(std::move(options)),
      guard_(std::move(guard)),
      blocks_(options_.blocks),
      slots_(options_.max_rows, false),
      drafted_(options_.draft_model ? options_.blocks : 0, false) {}

void Scheduler::check_fits(const Request& request, const EngineOptions& options) {
  const int64_t prompt = request.prompt.size();
  const int64_t room = int64_t{options.blocks} * options.block_size;
  const int64_t limit = options.max_context > 0 ? std::min<int64_t>(options.max_context, room) : room;
  const int before = request.recall.before;
  if (options.max_context > 0 && before > 0 && prompt + request.max_tokens + before > options.max_context) {
    fail_field(
        "memory",
        "[generate] memories at contiguous positions are part of the context of {} tokens; got {} beside a prompt of {} "
        "and max_tokens {}",
        options.max_context,
        before,
        prompt,
        request.max_tokens);
  }
  if (before > 0 && options.own_kv_past > 0 && before + prompt > options.own_kv_past) {
    fail_field(
        "memory",
        "[generate] memories at contiguous positions and the prompt hold at most {} tokens with this model, whose RoPE "
        "base changes beyond; got {} and {}",
        options.own_kv_past,
        before,
        prompt);
  }
  if (prompt + request.max_tokens <= limit) {
    return;
  }
  fail_field(
      prompt > limit ? "prompt" : "max_tokens",
      "[generate] a request holds at most {} tokens; got a prompt of {} and max_tokens {}",
      limit,
      prompt,
      request.max_tokens);
}

uint64_t Scheduler::add(Request request) {
  check_fits(request, options_);
  Row row;
  row.number = ++last_row_;
  row.prompt = static_cast<int>(request.prompt.size());
  row.tokens = std::move(request.prompt);
  const Sampling& sampling = request.sampling;
  if (!sampling.ignore_eos) {
    row.end_ids = options_.end_ids;
  }
  row.end_ids.insert(row.end_ids.end(), sampling.stop_token_ids.begin(), sampling.stop_token_ids.end());
  row.request = std::move(request);
  std::string own; // what else its KV depends on
  if (options_.own_kv_past > 0 && row.prompt > options_.own_kv_past) {
    own += fmt::format("/{}", row.prompt);
  }
  if (row.request.recall.memories) { // keys of all layers but the first depend on them
    own += fmt::format("/recall/{}", row.request.recall.key);
  }
  std::string& salt = row.request.cache_salt;
  if (!salt.empty() || !own.empty()) { // the length, so that no salt reads as another one and more
    salt = fmt::format("{}:{}{}", salt.size(), salt, own);
  }
  const uint64_t number = row.number;
  rows_.emplace(number, std::move(row));
  return number;
}

void Scheduler::cancel(uint64_t number) {
  if (auto row = rows_.find(number); row != rows_.end()) {
    end(row->second, Finish::cancelled);
  }
}

Plan Scheduler::plan() {
  Plan plan;
  Flight flight;
  auto suspect = std::find_if(rows_.begin(), rows_.end(), [](auto& entry) { return entry.second.suspect; });
  if (suspect != rows_.end()) {
    // Alone in the step and in the pipeline, so that a failure is its own.
    int budget = options_.prefill_tokens;
    if (flights_.empty()) {
      prefill(suspect->second, plan, flight, budget);
    }
  } else if (!flights_.empty() && (flights_.back().guesses > 0 || choose_guesses(false) > 0)) {
    return plan; // where rows stand, and what to guess, is known once all tokens are read
  } else {
    plan_decoding(plan, flight);
    const bool decoding = std::any_of(
        rows_.begin(), rows_.end(), [](auto& entry) { return entry.second.decodes() || entry.second.unread(); });
    stats_.decode_rows += plan.rows.size();
    stats_.decode_steps += !plan.rows.empty();
    plan_prefill(plan, flight, decoding ? options_.mixed_tokens : options_.prefill_tokens);
  }
  if (!plan.empty()) {
    plan.number = ++last_plan_;
    ++stats_.steps;
    stats_.prefill_steps += flight.prefill;
    const size_t tenth = 10 * plan.rows.size() / options_.max_rows;
    ++stats_.batch_fill[std::min<size_t>(tenth, 9)];
    flights_.push_back(std::move(flight));
  }
  return plan;
}

void Scheduler::plan_decoding(Plan& plan, Flight& flight) {
  flight.waited = flights_.empty();
  int backlog = options_.mixed_tokens; // of tokens that the draft model has yet to read
  const int guesses = flight.waited ? choose_guesses(true) : 0;
  // Oldest first: what `reserve` preempts is younger than all that is in the
  // plan.
  for (auto next = rows_.begin(); next != rows_.end();) {
    Row& row = (next++)->second;
    if (!row.decodes() || (row.waits() && row.unread()) || !reserve(row)) {
      continue;
    }
    std::vector<uint32_t> allowed;
    if (!fill_mask(row, allowed)) {
      continue;
    }
    const int most = std::min(guesses, most_guesses(row));
    plan.rows.push_back(make_step(row, 1, flight, plan));
    RowStep& step = plan.rows.back();
    step.allowed = std::move(allowed);
    if (most > 0 && (!options_.draft_model || read_draft(row, step, backlog))) {
      guess(row, most, step, flight.parts.back());
    }
    flight.tokens += step.count;
    flight.guesses = std::max(flight.guesses, step.guesses);
    flight.backlog = flight.backlog || step.draft_ids.size() > 2; // two are what steps with guesses leave
  }
}

void Scheduler::plan_prefill(Plan& plan, Flight& flight, int budget) {
  for (auto next = rows_.begin(); next != rows_.end() && budget > 0;) {
    Row& row = (next++)->second;
    const bool reads = row.slot < 0 || (!row.planned_out() && !row.decodes());
    if (reads && !prefill(row, plan, flight, budget)) {
      return;
    }
  }
}

bool Scheduler::prefill(Row& row, Plan& plan, Flight& flight, int& budget) {
  if (row.slot >= 0 && (row.planned_out() || row.decodes())) {
    return true;
  }
  if (row.slot < 0 && (row.uncommitted > 0 || !enter(row))) {
    return false;
  }
  adopt(row);
  int count = std::min(budget, row.length() - row.placed);
  const int size = options_.block_size;
  while (static_cast<int>(row.blocks.size()) * size < row.placed + count) {
    auto block = take_block();
    if (!block) { // older rows hold the rest: it goes on when they end
      count = static_cast<int>(row.blocks.size()) * size - row.placed;
      break;
    }
    row.blocks.push_back(*block);
  }
  if (count == 0) {
    return false;
  }
  std::vector<uint32_t> allowed;
  if (row.placed + count == row.length() && row.request.max_tokens > 0 && !fill_mask(row, allowed)) {
    return true;
  }
  flight.prefill = true;
  plan.rows.push_back(make_step(row, count, flight, plan));
  plan.rows.back().allowed = std::move(allowed);
  budget -= count;
  return true;
}

/** Gives a waiting row a slot, and the cached blocks its tokens begin with, if
 * all its tokens fit now. */
bool Scheduler::enter(Row& row) {
  auto slot = std::find(slots_.begin(), slots_.end(), false);
  if (slot == slots_.end()) {
    return false;
  }
  adopt(row);
  const int adopted = row.placed;
  const int size = options_.block_size;
  const int tokens = row.length() + (row.request.max_tokens > 0);
  const int needed = (tokens + size - 1) / size - adopted / size;
  if (needed > blocks_.free()) {
    release(row);
    return false;
  }
  *slot = true;
  row.slot = static_cast<int>(slot - slots_.begin());
  if (!row.cached) {
    row.cached = std::min(adopted, row.prompt);
    stats_.prompt_tokens += row.prompt;
    stats_.cached_tokens += *row.cached;
    if (options_.prefix_cache && !row.wants_scores()) {
      stats_.prefix_queries += row.prompt;
      stats_.prefix_hits += *row.cached;
    }
  }
  return true;
}

RowStep Scheduler::make_step(Row& row, int count, Flight& flight, Plan& plan) {
  if (!row.joined) {
    auto output = row.tokens.begin() + row.prompt;
    plan.joins.push_back(
        {row.slot,
         row.request.sampling,
         row.end_ids,
         {row.tokens.begin(), output},
         {output, row.tokens.end()},
         row.request.recall});
    row.joined = true;
  }
  RowStep step;
  step.slot = row.slot;
  step.start = row.placed;
  step.count = count;
  if (row.placed < static_cast<int>(row.tokens.size())) {
    auto first = row.tokens.begin() + row.placed;
    step.ids.assign(first, first + count);
  }
  row.placed += count;
  const bool last = row.placed == row.length();
  step.sample = last && row.request.max_tokens > 0;
  for (const int32_t position : row.unsure) {
    if (position >= step.start && position < row.placed) {
      step.more.push_back(position - step.start);
    }
  }
  if (step.sample && row.request.recall.more && (row.unsure.empty() || row.unsure.back() != row.placed - 1)) {
    step.unsure_above = row.request.recall.unsure_above;
  }
  step.draw_index = row.sampled;
  add_scores(row, step);
  step.blocks = row.blocks;
  step.rope_length = row.prompt;
  row.sampled += step.sample;
  ++row.uncommitted;
  register_blocks(row);
  flight.parts.push_back(
      {row.number,
       row.slot,
       step.sample,
       last && !step.sample,
       step.unsure_above > 0,
       static_cast<int>(step.score_ids.size())});
  return step;
}

/** True where the row has no mask, too; false: its mask threw and the row has
 * ended. */
bool Scheduler::fill_mask(Row& row, std::vector<uint32_t>& words) {
  if (!row.request.mask) {
    return true;
  }
  words.assign((options_.vocabulary + 31) / 32, 0);
  auto error = guard_([&] { row.request.mask->allowed(words); });
  if (!error && std::all_of(words.begin(), words.end(), [](uint32_t word) { return word == 0; })) {
    error.emplace(Kind::internal, "", "[mask] no token is allowed; got an empty mask");
  }
  if (error) {
    end(row, Finish::error, std::move(error));
    return false;
  }
  return true;
}

/** Prompt token p+1 is scored by position p; what an earlier step scored is not
 * scored again after preemption. */
void Scheduler::add_scores(Row& row, RowStep& step) {
  step.score = -1;
  const int end = std::min(row.placed, row.prompt - 1);
  if (!row.request.sampling.prompt_logprobs || row.scored >= end) {
    return;
  }
  step.score = row.scored - step.start;
  step.score_ids.assign(row.tokens.begin() + row.scored + 1, row.tokens.begin() + end + 1);
  row.scored = end;
}

/** Room for one more token; preempts the youngest rows for it. False: the row
 * itself was the youngest. */
bool Scheduler::reserve(Row& row) {
  if (row.placed < static_cast<int>(row.blocks.size()) * options_.block_size) {
    return true;
  }
  for (;;) {
    if (auto block = take_block()) {
      row.blocks.push_back(*block);
      return true;
    }
    auto youngest = std::find_if(rows_.rbegin(), rows_.rend(), [](auto& entry) { return entry.second.slot >= 0; });
    ++stats_.preemptions;
    release(youngest->second);
    if (&youngest->second == &row) {
      return false;
    }
  }
}

std::optional<int32_t> Scheduler::take_block() {
  auto block = blocks_.take();
  if (block && options_.draft_model) {
    drafted_[*block] = false;
  }
  return block;
}

void Scheduler::adopt(Row& row) {
  const int size = options_.block_size;
  if (!options_.prefix_cache || row.wants_scores()) {
    return;
  }
  // The last token is always computed: its logits give the next one.
  while (row.placed % size == 0 && row.keyed == row.placed / size &&
         row.blocks.size() == static_cast<size_t>(row.keyed) && row.placed + size < row.length() &&
         row.placed + size <= row.shareable()) {
    auto block = blocks_.adopt(row.key, std::span(row.tokens).subspan(row.placed, size), row.request.cache_salt);
    if (!block) {
      return;
    }
    row.blocks.push_back(*block);
    if (options_.draft_model && drafted_[*block] && row.drafted == row.placed) {
      row.drafted += size;
    }
    row.placed += size;
    ++row.keyed;
  }
}

/** Caches the blocks that are full and whose tokens are known by now. */
void Scheduler::register_blocks(Row& row) {
  const int size = options_.block_size;
  int known = std::min<int>(row.placed, row.tokens.size());
  if (row.request.recall.more) { // the last token's position may be computed again
    known = std::min({known, static_cast<int>(row.tokens.size()) - 1, row.shareable()});
  }
  while (options_.prefix_cache && (row.keyed + 1) * size <= known) {
    blocks_.enter(
        row.blocks[row.keyed], row.key, std::span(row.tokens).subspan(row.keyed * size, size), row.request.cache_salt);
    ++row.keyed;
  }
}

/** Takes the row's slot and blocks; it waits from now on. */
void Scheduler::release(Row& row) {
  blocks_.release(row.blocks);
  if (row.slot >= 0) {
    slots_[row.slot] = false;
  }
  row.slot = -1;
  row.joined = false;
  row.placed = 0;
  row.drafted = 0;
  row.keyed = 0;
  row.key = PrefixKey::start;
}

void Scheduler::commit(std::vector<RowResult> results, double seconds) {
  check(!flights_.empty(), "a step is committed once");
  const Flight& front = flights_.front();
  check(results.size() == front.parts.size(), "each row of a step has a result");
  for (size_t i = 0; i < results.size(); ++i) {
    const Part& part = front.parts[i];
    const auto& sampled = results[i].sampled;
    check(results[i].slot == part.slot, "results are in the plan's order");
    const size_t most = part.sample ? 1 + part.guesses : 0;
    check(
        sampled.size() <= most && sampled.empty() == (!part.sample || results[i].unsure),
        "each draw up to the first wrong guess gives a token");
    check(!results[i].unsure || part.looks, "a position is computed again where the plan said so");
    check(
        std::all_of(
            sampled.begin(),
            sampled.end(),
            [&](const Scored& s) { return s.token.id >= 0 && s.token.id < options_.vocabulary; }),
        "a sampled id is in the vocabulary");
    check(static_cast<int>(results[i].prompt.size()) == part.scores, "each position to score has its score");
    check(results[i].uses.empty() || results[i].uses.size() == sampled.size(), "each token tells what it used");
  }
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  (flight.prefill ? stats_.prefill_seconds : stats_.decode_seconds) += seconds;
  if (!flight.prefill && !flight.backlog) {
    cost_.learn({flight.tokens, options_.draft_model ? flight.guesses : 0, flight.waited}, seconds);
  }
  for (size_t i = 0; i < results.size(); ++i) {
    // A row that ended meanwhile leaves a wasted token behind.
    if (auto row = rows_.find(flight.parts[i].row); row != rows_.end()) {
      take(row->second, flight.parts[i], results[i]);
    }
  }
}

void Scheduler::take(Row& row, const Part& part, RowResult& result) {
  --row.uncommitted;
  row.scores_taken += part.scores;
  std::move(result.prompt.begin(), result.prompt.end(), std::back_inserter(row.scores));
  if (result.unsure) {
    look_again(row);
  } else if (part.sample) {
    judge(row, part, result.sampled);
    for (size_t i = 0; i < result.sampled.size(); ++i) {
      std::optional<MemoryUse> use;
      if (!result.uses.empty()) {
        use = std::move(result.uses[i]);
      }
      if (!take_token(row, std::move(result.sampled[i]), std::move(use))) {
        return;
      }
    }
    if (options_.guesses > 0 && !options_.draft_model) {
      row.lookup = look_up(row.tokens, most_guesses(row));
    }
  } else if (part.last) {
    end(row, Finish::length);
  }
}

/** Takes back the position whose next token is unsure: the next step computes it with more memories. */
void Scheduler::look_again(Row& row) {
  ++stats_.unsure_steps;
  row.unsure.push_back(static_cast<int32_t>(row.tokens.size()) - 1);
  --row.sampled;
  if (row.slot >= 0) { // else it was preempted and has no position any more
    --row.placed;
  }
  if (row.suspect) { // it passed: see take_token
    row.suspect = false;
    release(row);
  }
}

bool Scheduler::take_token(Row& row, Scored sampled, std::optional<MemoryUse> use) {
  const int32_t id = sampled.token.id;
  row.tokens.push_back(id);
  ++stats_.generated_tokens;
  register_blocks(row);
  const int output = static_cast<int>(row.tokens.size()) - row.prompt;
  Event event;
  event.token = std::move(sampled);
  event.looked_again = !row.unsure.empty() && row.unsure.back() == static_cast<int32_t>(row.tokens.size()) - 2;
  if (use) {
    if (!row.uses) {
      row.uses.emplace();
    }
    row.uses->add(*use);
    event.token_use = most_used(std::move(*use), most_told, row.request.recall.background.get());
  }
  if (output > row.request.sampling.min_tokens &&
      std::find(row.end_ids.begin(), row.end_ids.end(), id) != row.end_ids.end()) {
    event.finish = Finish::stop;
  } else if (output == row.request.max_tokens) {
    event.finish = Finish::length;
  }
  const Finish finish = event.finish;
  emit(row, std::move(event));
  if (finish != Finish::none) {
    erase(row, finish);
    return false;
  }
  if (row.request.mask) {
    if (auto error = guard_([&] { row.request.mask->accept(id); })) {
      end(row, Finish::error, std::move(error));
      return false;
    }
  }
  if (row.suspect) { // it passed: it waits for the other suspects' turn
    row.suspect = false;
    release(row);
  }
  return true;
}

void Scheduler::failed(const Error& error) {
  flights_.clear();
  blocks_.forget();
  // A suspect runs only when nothing else does.
  auto alone = std::find_if(
      rows_.begin(), rows_.end(), [](auto& entry) { return entry.second.suspect && entry.second.uncommitted > 0; });
  if (alone != rows_.end()) {
    end(alone->second, Finish::error, error);
  }
  for (auto& [number, row] : rows_) {
    row.suspect = row.suspect || row.slot >= 0 || row.uncommitted > 0;
    release(row);
    row.uncommitted = 0;
    row.sampled = static_cast<int>(row.tokens.size()) - row.prompt;
    row.scored = row.scores_taken;
  }
}

std::vector<RowEvent> Scheduler::take_events() {
  return std::exchange(events_, {});
}

void Scheduler::emit(Row& row, Event event) {
  event.prompt = std::exchange(row.scores, {});
  event.cached_tokens = row.cached.value_or(0);
  if (event.finish != Finish::none && row.uses) {
    event.whole_use = row.uses->take();
  }
  events_.push_back({row.number, std::move(event)});
}

/** Ends a row without a token. */
void Scheduler::end(Row& row, Finish finish, std::optional<Error> error) {
  if (finish != Finish::length) {
    row.scores.clear(); // never a part of them
  }
  Event event;
  event.finish = finish;
  event.error = std::move(error);
  emit(row, std::move(event));
  erase(row, finish);
}

void Scheduler::erase(Row& row, Finish finish) {
  stats_.finished_stop += finish == Finish::stop;
  stats_.finished_length += finish == Finish::length;
  stats_.cancelled += finish == Finish::cancelled;
  stats_.failed += finish == Finish::error;
  release(row);
  rows_.erase(row.number);
}

EngineStats Scheduler::stats() const {
  EngineStats stats = stats_;
  for (const auto& [number, row] : rows_) {
    ++(row.slot >= 0 ? stats.running : stats.waiting);
  }
  stats.blocks_total = blocks_.total();
  stats.blocks_used = blocks_.total() - blocks_.free();
  stats.blocks_cached = blocks_.idle();
  return stats;
}

void Scheduler::verify() const {
  std::vector<const std::vector<int32_t>*> tables;
  std::vector<bool> slots(slots_.size(), false);
  std::map<uint64_t, int> parts;
  for (const Flight& flight : flights_) {
    for (const Part& part : flight.parts) {
      ++parts[part.row];
    }
  }
  bool waits = false;
  for (const auto& [number, row] : rows_) {
    tables.push_back(&row.blocks);
    check(row.uncommitted == parts[number], "a row's steps are in flight");
    check(row.placed <= static_cast<int>(row.blocks.size()) * options_.block_size, "what is placed has blocks");
    if (row.slot < 0) {
      waits = true;
      check(row.blocks.empty(), "a waiting row holds no block");
    } else {
      check(!waits || row.suspect, "running rows are older than waiting ones");
      check(!slots[row.slot], "a slot has one row");
      slots[row.slot] = true;
    }
  }
  check(slots == slots_, "a slot is taken where a row has it");
  blocks_.verify(tables);
}

} // namespace parallm
