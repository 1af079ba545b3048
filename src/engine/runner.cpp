#include "engine/runner.h"

#include "base/error.h"
#include "base/trace.h"
#include "nn/host_array.h"

#include <algorithm>

namespace parallm {

namespace {

/** How many tokens each of a row's spans has: one alone where there are guesses, so that it is computed as a decoding
 * row's is; else as many as recall the same. */
std::vector<int> span_counts(const RowStep& row) {
  if (row.guesses > 0) {
    return std::vector<int>(row.count, 1);
  }
  std::vector<int> counts;
  int begin = 0;
  for (const int32_t alone : row.more) {
    if (alone > begin) {
      counts.push_back(alone - begin);
    }
    counts.push_back(1);
    begin = alone + 1;
  }
  if (row.count > begin) {
    counts.push_back(row.count - begin);
  }
  return counts;
}

// Scored positions whose logits are alive at once: 64 x 262k float32 is 67 MB.
constexpr int score_chunk = 64;

Scored scored(const Scores* scores, int row, int32_t id, int top) {
  Scored s{{id, 0}, {}};
  if (scores == nullptr) {
    return s;
  }
  s.token.logprob = scores->chosen.data<float>()[row];
  if (scores->ids) {
    const int width = scores->ids->shape(1);
    for (int k = 0; k < std::min(top, width); ++k) {
      s.top.push_back({scores->ids->data<int32_t>()[row * width + k], scores->top->data<float>()[row * width + k]});
    }
  }
  return s;
}

} // namespace

ModelRunner::ModelRunner(
    std::unique_ptr<Model> model,
    std::unique_ptr<Caches> caches,
    int slots,
    std::unique_ptr<Drafter> drafter)
    : model_(std::move(model)),
      caches_(std::move(caches)),
      drafter_(std::move(drafter)),
      sampler_(slots, model_->vocabulary()),
      last_tokens_(mx::zeros({slots}, mx::int32)),
      recalled_(slots) {}

Model& ModelRunner::model() {
  return *model_;
}

mx::array ModelRunner::ids(const Plan& plan, Step& step) {
  // Into the slots' last tokens, followed by the ids that the host knows and
  // the draft model's guesses.
  const int slots = last_tokens_.shape(0);
  std::vector<int32_t> known;
  bool drafts = false;
  for (const RowStep& row : plan.rows) {
    known.insert(known.end(), row.ids.begin(), row.ids.end());
    drafts = drafts || !row.draft_ids.empty();
  }
  std::vector<int32_t> index;
  int next = slots, next_guess = slots + static_cast<int>(known.size());
  for (const RowStep& row : plan.rows) {
    if (row.ids.empty()) {
      index.push_back(row.slot);
    }
    for (size_t i = 0; i < row.ids.size(); ++i) {
      index.push_back(next++);
    }
    if (!row.draft_ids.empty()) {
      for (int i = 0; i < row.guesses; ++i) {
        index.push_back(next_guess++);
      }
    }
  }
  if (known.size() == index.size() && !drafts) {
    return host_array(known);
  }
  std::vector<mx::array> sources{last_tokens_};
  if (!known.empty()) {
    sources.push_back(host_array(known));
  }
  if (drafts) {
    check(drafter_ != nullptr, "guesses without ids need a draft model");
    auto guesses = drafter_->guess(plan, sampler_, model_->vocabulary());
    step.outputs.push_back(guesses.read);
    if (guesses.ids) {
      sources.push_back(*guesses.ids);
    }
  }
  return mx::take(sources.size() == 1 ? sources[0] : mx::concatenate(sources, 0), host_array(index), 0);
}

void ModelRunner::launch(const Plan& plan) {
  for (const Join& join : plan.joins) {
    sampler_.join(join);
    recalled_[join.slot] = {join.recall.memories, join.recall.more};
  }
  Step step;
  step.rows = plan.rows;
  std::vector<Span> spans;
  int first = 0;
  for (size_t r = 0; r < plan.rows.size(); ++r) {
    const RowStep& row = plan.rows[r];
    const Recalling& recalled = recalled_[row.slot];
    int done = 0;
    for (const int count : span_counts(row)) {
      const bool more = std::binary_search(row.more.begin(), row.more.end(), done);
      spans.push_back(
          {first,
           count,
           row.start + done,
           row.blocks,
           row.rope_length,
           row.slot,
           more ? recalled.more.lock() : recalled.memories.lock()});
      first += count;
      done += count;
      if (row.sample && done >= row.count - row.guesses) {
        auto& span = spans.back();
        span.record = span.recalled && span.recalled->how.record ? std::make_shared<MemoryRecord>() : nullptr;
        step.records.push_back(span.record);
      }
    }
    step.tops.push_back(sampler_.sampling(row.slot).logprobs);
    if (row.sample) {
      step.sampled.push_back(static_cast<int>(r));
    }
    if (!row.score_ids.empty()) {
      step.scored.push_back(static_cast<int>(r));
    }
  }
  std::optional<trace::Span> span(std::in_place, "graph");
  auto tokens = ids(plan, step);
  caches_->begin(std::move(spans));
  auto hidden = model_->hidden(tokens, *caches_);
  // The KV of every layer hangs on it: a chunk that samples nothing runs too.
  step.outputs.push_back(hidden);
  for (const auto& record : step.records) {
    if (record && record->sums && record->sums->all) {
      step.outputs.push_back(*record->sums->all);
    }
  }
  score_prompt(step, hidden);
  span.emplace("sampling");
  sample(step, tokens, hidden);
  span.emplace("start");
  mx::async_eval(step.outputs);
  under_way_.push_back(std::move(step));
}

void ModelRunner::score_prompt(Step& step, const mx::array& hidden) {
  int first = 0;
  size_t next = 0;
  for (size_t r = 0; r < step.rows.size(); ++r) {
    const RowStep& row = step.rows[r];
    if (next < step.scored.size() && step.scored[next] == static_cast<int>(r)) {
      ++next;
      const int top = std::max(0, step.tops[r]);
      const int many = static_cast<int>(row.score_ids.size());
      std::vector<mx::array> chosen, ids, tops;
      for (int at = 0; at < many; at += score_chunk) {
        const int end = std::min(many, at + score_chunk);
        const int from = first + row.score;
        auto part = mx::slice(hidden, {from + at, 0}, {from + end, hidden.shape(1)});
        std::vector<int32_t> targets(row.score_ids.begin() + at, row.score_ids.begin() + end);
        auto s = score(model_->logits(part), host_array(targets), std::min(top, model_->vocabulary()));
        chosen.push_back(s.chosen);
        if (s.ids) {
          ids.push_back(*s.ids);
          tops.push_back(*s.top);
        }
      }
      Scores all{mx::concatenate(chosen, 0)};
      step.outputs.push_back(all.chosen);
      if (!ids.empty()) {
        all.ids = mx::concatenate(ids, 0);
        all.top = mx::concatenate(tops, 0);
        step.outputs.push_back(*all.ids);
        step.outputs.push_back(*all.top);
      }
      step.scores.push_back(std::move(all));
    }
    first += row.count;
  }
}

void ModelRunner::sample(Step& step, const mx::array& ids, const mx::array& hidden) {
  if (step.sampled.empty()) {
    return;
  }
  std::vector<Draw> draws;
  std::vector<int32_t> slots, places, last; // last: a row's last draw, which stands where it has no guesses
  int end = 0;
  for (const RowStep& row : step.rows) {
    end += row.count;
    if (row.sample) {
      for (int ahead = 0; ahead <= row.guesses; ++ahead) {
        draws.push_back({&row, ahead});
        places.push_back(end - 1 - row.guesses + ahead);
      }
      slots.push_back(row.slot);
      last.push_back(static_cast<int32_t>(draws.size()) - 1);
    }
  }
  auto heads = static_cast<int>(places.size()) == hidden.shape(0) ? hidden : mx::take(hidden, host_array(places), 0);
  const bool guesses = draws.size() > slots.size();
  if (guesses) {
    step.read = mx::take(ids, host_array(places), 0);
    step.outputs.push_back(*step.read);
  }
  step.tokens = sampler_.sample(model_->logits(heads), draws, step.read);
  auto& tokens = step.tokens->tokens;
  last_tokens_ =
      mx::put_along_axis(last_tokens_, host_array(slots), guesses ? mx::take(tokens, host_array(last), 0) : tokens, 0);
  step.outputs.push_back(step.tokens->tokens);
  if (step.tokens->unsure) {
    step.outputs.push_back(*step.tokens->unsure);
  }
  step.outputs.push_back(last_tokens_);
  if (step.tokens->scores) {
    step.outputs.push_back(step.tokens->scores->chosen);
    if (step.tokens->scores->ids) {
      step.outputs.push_back(*step.tokens->scores->ids);
      step.outputs.push_back(*step.tokens->scores->top);
    }
  }
}

std::vector<RowResult> ModelRunner::collect() {
  check(!under_way_.empty(), "collect needs a launched step");
  Step step = std::move(under_way_.front());
  under_way_.pop_front();
  {
    trace::Span span("wait");
    mx::eval(step.outputs);
  }

  std::vector<RowResult> results(step.rows.size());
  for (size_t r = 0; r < step.rows.size(); ++r) {
    results[r].slot = step.rows[r].slot;
  }
  int draw = 0;
  for (int r : step.sampled) {
    const int guesses = step.rows[r].guesses;
    const int top = step.tops[r];
    const Scores* scores = top >= 0 ? &step.tokens->scores.value() : nullptr;
    const auto* ids = step.tokens->tokens.data<int32_t>() + draw;
    if (step.tokens->unsure && step.tokens->unsure->data<bool>()[draw]) {
      results[r].unsure = true;
      draw += 1;
      continue;
    }
    for (int i = 0; i <= guesses; ++i) {
      results[r].sampled.push_back(scored(scores, draw + i, ids[i], top));
      if (const auto& record = step.records[draw + i]) {
        results[r].uses.push_back(record->use());
      }
      if (i < guesses && step.read->data<int32_t>()[draw + i + 1] != ids[i]) {
        break;
      }
    }
    draw += 1 + guesses;
  }
  for (size_t i = 0; i < step.scored.size(); ++i) {
    const RowStep& row = step.rows[step.scored[i]];
    const int top = step.tops[step.scored[i]];
    for (size_t p = 0; p < row.score_ids.size(); ++p) {
      results[step.scored[i]].prompt.push_back(scored(&step.scores[i], static_cast<int>(p), row.score_ids[p], top));
    }
  }
  return results;
}

void ModelRunner::reset() {
  under_way_.clear();
  mx::synchronize();
}

} // namespace parallm
