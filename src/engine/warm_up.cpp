#include "engine/warm_up.h"

#include <algorithm>

namespace parallm {

namespace {

void run(Runner& runner, const Plan& plan) {
  runner.launch(plan);
  runner.collect();
}

/** `rows` sequences: prompts of `prompt` tokens in one step, then some tokens.
 * Each has blocks of its own. */
void generate(Runner& runner, const EngineOptions& options, int rows, int prompt, const Sampling& sampling) {
  constexpr int tokens = 3;
  const int guesses = options.guesses;
  const int each = (prompt + tokens + guesses + options.block_size - 1) / options.block_size;
  rows = std::min({rows, options.max_rows, options.blocks / each});
  Plan plan;
  for (int slot = 0; slot < rows; ++slot) {
    RowStep row{.slot = slot, .start = 0, .count = prompt};
    row.ids.assign(prompt, slot % options.vocabulary);
    row.sample = true;
    row.rope_length = prompt;
    for (int i = 0; i < each; ++i) {
      row.blocks.push_back(slot * each + i);
    }
    if (sampling.prompt_logprobs) {
      row.score_ids.assign(row.ids.begin() + 1, row.ids.end());
    }
    plan.joins.push_back({slot, sampling, {}, row.ids, {}});
    plan.rows.push_back(std::move(row));
  }
  if (rows > 0) {
    run(runner, plan);
  }
  for (int i = 0; rows > 0 && i < tokens; ++i) {
    plan.joins.clear();
    for (RowStep& row : plan.rows) {
      row.start = prompt + i;
      row.count = 1;
      row.ids.clear();
      row.score_ids.clear();
      row.draw_index = i + 1;
      row.draft_ids.clear();
      row.guesses = 0;
      if (i > 0 && guesses > 0) { // any tokens: nobody reads what comes of them
        row.guesses = guesses;
        row.count = 1 + guesses;
        row.ids.assign(options.draft_model ? 1 : row.count, 0);
        row.draft_start = i == 1 ? 0 : row.start;
        row.draft_ids.assign(options.draft_model ? row.start + 1 - row.draft_start : 0, 0);
      }
    }
    run(runner, plan);
  }
}

} // namespace

void warm_up(Runner& runner, const EngineOptions& options) {
  Sampling greedy{.temperature = 0};
  Sampling all{
      .top_p = 0.9f,
      .top_k = 40,
      .min_p = 0.01f,
      .repetition_penalty = 1.1f,
      .presence_penalty = 0.1f,
      .logit_bias = {{0, 1.0f}},
      .logprobs = std::min(5, options.vocabulary),
      .prompt_logprobs = true};
  // More rows and positions than kernels/cuda's ones for few rows and short contexts take.
  const int prompt = std::min({300, options.prefill_tokens, options.max_context - 4});
  if (prompt < 2) {
    return;
  }
  generate(runner, options, 1, prompt, greedy);
  generate(runner, options, 1, prompt, all);
  for (int few : {12, 24, 48}) { // and the kernels between: of up to 16, 32 and 64 rows
    generate(runner, options, 1, std::min(few, prompt), greedy);
  }
  for (int rows = 2; rows < 2 * options.max_rows; rows *= 2) {
    generate(runner, options, rows, 2, rows % 3 == 1 ? all : greedy); // 4, 16, 64 ...: all
  }
}

} // namespace parallm
