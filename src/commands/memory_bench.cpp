// `mlx_parallm memory-bench`: what memories are worth, and cost, with a model at hand.
#include "base/log.h"
#include "base/random_hex.h"
#include "commands/bench_memory.h"
#include "commands/bench_report.h"
#include "commands/bench_wikiqa.h"
#include "commands/commands.h"
#include "commands/flags.h"
#include "commands/progress.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

namespace parallm {

namespace {

constexpr int all = 1 << 20;

struct BenchFlags {
  std::string model_path;
  LoadOptions load = {.max_rows = 16, .extended_mind = true};
  int facts = 100;
  uint64_t seed = 1;
  std::vector<int> distractors = {0};
  std::vector<std::string> top_k;
  std::vector<std::string> positions = {"zero", "contiguous"};
  int block_tokens = 1;
  double entropy = 0;
  int extra_k = 8;
  std::string keeping = "packed";
  int documents = 2;
  bool compare = false;
  std::vector<int> lengths = {1000, 8000};
  int timed = 5;
  std::string result, wikiqa;
  int limit = 0;
  bool quiet = false;
};

int number_of(const std::string& top_k) {
  return top_k == "all" ? all : std::stoi(top_k);
}

/** How memories are used in a row of a table. */
RecallHow how_of(const BenchFlags& flags, const std::string& position, const std::string& top_k) {
  RecallHow how{.top_k = number_of(top_k), .contiguous = position == "contiguous"};
  how.block_tokens = flags.block_tokens;
  if (flags.entropy > 0) {
    how.unsure_above = static_cast<float>(flags.entropy);
    how.extra_k = flags.extra_k;
  }
  return how;
}

std::string check_top_k(const std::string& text) {
  const bool number = !text.empty() && text.size() < 7 &&
      std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
  return text == "all" || number ? "" : "a number or all is wanted; got " + text;
}

std::string model_text(const ModelInfo& info) {
  return fmt::format(
      "Model: {} ({}, {}; activations {}, keys and values {}).",
      std::filesystem::path(info.path).filename().string(),
      info.model_type,
      info.device,
      info.dtype,
      info.kv_dtype);
}

/** A folder that goes with what uses it. */
struct Folder {
  std::filesystem::path path = std::filesystem::temp_directory_path() / ("memory-bench-" + random_hex(12));
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }
};

class FactsReport {
 public:
  FactsReport(const BenchFlags& flags, LanguageModel& model, Report& report)
      : flags_(flags), model_(model), report_(report), bar_(stderr, !flags.quiet) {}

  void run() {
    const int distractors = flags_.distractors.front();
    Folder folder;
    MemoryBench bench(model_, folder.path.string(), flags_.facts, distractors, flags_.seed);
    head(bench);
    main_table(bench);
    exactness(bench);
    if (flags_.compare) {
      keepings_table(bench);
    }
    lengths_table(bench);
    if (flags_.distractors.size() > 1) {
      distractors_table();
    }
  }

 private:
  using With = Asking::With;

  void head(const MemoryBench& bench) {
    report_.say("# Memories against the prompt\n");
    report_.say("`mlx_parallm memory-bench` made this. {}", model_text(model_.info()));
    report_.say(
        "{} made-up facts (seed {}: codes, names, days, years) and {} texts that have nothing to do with them, in mixed order: "
        "{} tokens.",
        flags_.facts,
        flags_.seed,
        flags_.distractors.front(),
        bench.text_tokens());
    report_.say(
        "One question a fact, that begins the answer: \"Question: Who is the harbour master of Dova?\\nAnswer: The harbour "
        "master of Dova is\".");
    report_.say(
        "Exact: each token of the answer is the model's most likely one. Log-probability: of an answer's token, its mean. "
        "First token, tokens/s: of one question at a time that shares no KV with another, the median of {}, with what is "
        "done to choose the memories.",
        flags_.timed);
    report_.say(
        "Bytes: of the texts' keys and values. Kept as: {}{}.",
        keeping_of(flags_.keeping).what,
        flags_.documents > 0
            ? fmt::format("; of them the {} most similar to the question are searched", flags_.documents)
            : "; all are searched");
    if (flags_.block_tokens > 1) {
      report_.say("Memories come in blocks of {} tokens.", flags_.block_tokens);
    }
    if (flags_.entropy > 0) {
      report_.say("Above {} nats a position has {} more memories.", flags_.entropy, flags_.extra_k);
    }
  }

  void main_table(MemoryBench& bench) {
    report_.columns({"", "exact", "log-probability", "citation@1", "first token, ms", "tokens/s", "MB"});
    row(bench, "no memory", {.with = With::nothing});
    Asking prompt = asking("zero", "0");
    prompt.with = With::prompt;
    if (bench.fits_prompt(prompt)) {
      row(bench, flags_.documents > 0 ? "the same texts in the prompt" : "all texts in the prompt", prompt);
    }
    for (const std::string& position : flags_.positions) {
      for (const std::string& top_k : flags_.top_k) {
        row(bench, fmt::format("{}, k = {}", position, top_k), asking(position, top_k));
      }
    }
  }

  Asking asking(const std::string& position, const std::string& top_k) const {
    return {.how = how_of(flags_, position, top_k), .keeping = flags_.keeping, .most = flags_.documents};
  }

  void row(MemoryBench& bench, const std::string& name, const Asking& asking) {
    const Score score = scored(bench, name, asking, true);
    const Speed speed = bench.speed(asking, flags_.timed, 24);
    report_.say(
        "| {} | {:.2f} | {:.2f} | {} | {:.0f} | {:.1f} | {:.1f} |",
        name,
        score.exact,
        score.logprob,
        score.cited ? fmt::format("{:.2f}", *score.cited) : "",
        1000 * speed.first_token,
        speed.tokens_per_second,
        static_cast<double>(bench.bytes(asking)) / 1e6);
  }

  Score scored(MemoryBench& bench, const std::string& name, const Asking& asking, bool cited = false) {
    int done = 0;
    const Score score = bench.score(asking, cited, [&] {
      ++done;
      bar_.draw(static_cast<double>(done) / flags_.facts, fmt::format("{}: {}/{}", name, done, flags_.facts));
    });
    bar_.clear();
    return score;
  }

  void exactness(MemoryBench& bench) {
    if (!bench.fits_prompt({})) {
      return;
    }
    const auto found = bench.exactness();
    report_.say(
        "\nOne text, read in one window, `contiguous` with all memories, beside the same text in the prompt: log-probabilities "
        "differ by {:.1e} at most, of the 20 most likely tokens.",
        found.difference);
    if (found.rounding) {
      report_.say(
          "What rounding alone makes: that prompt at positions {} later, which the model can't tell apart, differs from itself by "
          "{:.1e}. On CPUs, layers in codes round activations to 16 bits and make much of a float's last bit; those in float32 don't.",
          bench.text_tokens(),
          *found.rounding);
    }
    if (model_.info().kv_dtype != "float32") {
      report_.say(
          "Keys are kept as {}: in the cache rotated, as memories not, so they are rounded at different places. `--dtype float32` "
          "without `--kv-bits` keeps them as they are.",
          model_.info().kv_dtype);
    }
  }

  void keepings_table(MemoryBench& bench) {
    report_.say("\n## Ways of keeping short texts\n");
    report_.say("k = 16; exact, and the log-probability of an answer's token.");
    report_.columns({"kept as", "searched", "zero", "contiguous"});
    for (const Keeping& keeping : keepings()) {
      for (const int most : keeping.one_text ? std::vector{0} : std::vector{0, 16, 4}) {
        std::vector<std::string> cells;
        for (const bool contiguous : {false, true}) {
          const Score score = scored(
              bench,
              keeping.name,
              {.how = {.top_k = 16, .contiguous = contiguous}, .keeping = keeping.name, .most = most});
          cells.push_back(fmt::format("{:.2f}, {:.2f}", score.exact, score.logprob));
        }
        const std::string searched = most == 0 ? "all" : fmt::format("the {} most similar", most);
        report_.say("| {} | {} | {} |", keeping.what, searched, fmt::join(cells, " | "));
      }
    }
  }

  void lengths_table(MemoryBench& bench) {
    if (flags_.lengths.empty() || flags_.lengths.front() == 0) {
      return;
    }
    report_.say("\n## The first token after long texts\n");
    report_.say("One text, as memories (k = 16) and in the prompt; milliseconds to the first token, then tokens/s.");
    report_.columns(
        {"tokens", "in the prompt", "zero", "times faster", "contiguous", "times faster", "reading it once, s"});
    for (const int tokens : flags_.lengths) {
      if (tokens + 128 > model_.info().max_context) {
        report_.say("| {} | longer than the model's context | | | | | |", tokens);
        continue;
      }
      const auto length = bench.length(tokens, 16, flags_.timed, 24);
      const auto cell = [](const Speed& speed) {
        return fmt::format("{:.0f}, {:.1f}", 1000 * speed.first_token, speed.tokens_per_second);
      };
      report_.say(
          "| {} | {} | {} | {:.0f} | {} | {:.0f} | {:.1f} |",
          tokens,
          cell(length.prompt),
          cell(length.zero),
          length.prompt.first_token / length.zero.first_token,
          cell(length.contiguous),
          length.prompt.first_token / length.contiguous.first_token,
          length.reading);
    }
  }

  void distractors_table() {
    report_.say("\n## With other texts among them\n");
    report_.say("Exact, and the log-probability of an answer's token; k = 16.");
    report_.columns(
        {"other texts",
         "tokens",
         "in the prompt",
         "zero",
         "contiguous",
         "zero, 4 documents",
         "contiguous, 4 documents"});
    for (const int distractors : flags_.distractors) {
      Folder folder;
      MemoryBench bench(model_, folder.path.string(), flags_.facts, distractors, flags_.seed);
      std::vector<std::string> cells;
      const auto cell = [&](const Asking& asking) {
        const Score score = scored(bench, fmt::format("{} other texts", distractors), asking);
        cells.push_back(fmt::format("{:.2f}, {:.2f}", score.exact, score.logprob));
      };
      const bool fits = bench.fits_prompt({}); // memories at contiguous positions are part of the context too
      const auto cell_if = [&](bool possible, const Asking& asking) {
        possible ? cell(asking) : void(cells.emplace_back("longer than the context"));
      };
      cell_if(fits, {.with = With::prompt});
      for (const int most : {0, 4}) {
        for (const char* position : {"zero", "contiguous"}) {
          Asking one = asking(position, "16");
          one.most = most;
          cell_if(fits || most > 0 || !one.how.contiguous, one);
        }
      }
      report_.say("| {} | {} | {} |", distractors, bench.text_tokens(), fmt::join(cells, " | "));
    }
  }

  const BenchFlags& flags_;
  LanguageModel& model_;
  Report& report_;
  Bar bar_;
};

void wikiqa(const BenchFlags& flags, LanguageModel& model, const std::vector<WikiQuestion>& questions, Report& report) {
  report.say("# Counterfactual WikiQA (arXiv 2406.02332)\n");
  report.say("`mlx_parallm memory-bench --wikiqa` made this. {}", model_text(model.info()));
  report.say(
      "Percent of answers that stand in 30 greedy tokens; one example, ours, before each question. Questions that are too long "
      "for the model's context count as not answered.");
  Folder folder;
  const auto memories = open_memories(model, {.store = "files:" + folder.path.string()});
  std::vector<std::pair<std::string, RecallHow>> ways;
  for (const std::string& position : flags.positions) {
    for (const std::string& top_k : flags.top_k) {
      ways.emplace_back(fmt::format("memories, {}, k = {}", position, top_k), how_of(flags, position, top_k));
    }
  }
  Bar bar(stderr, !flags.quiet);
  report_wikiqa(model, *memories, questions, ways, report, [&](size_t done, size_t total) {
    bar.draw(static_cast<double>(done) / static_cast<double>(total), fmt::format("{}/{} answers", done, total));
  });
}

void add_flags(CLI::App& app, BenchFlags& flags) {
  app.add_option("--model-path", flags.model_path, model_path_help)->required();
  app.add_option("--facts", flags.facts, "made-up facts that are asked about")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  app.add_option("--seed", flags.seed, "of the facts")->capture_default_str();
  app.add_option(
         "--distractors",
         flags.distractors,
         "texts that have nothing to do with them, among them; several counts, with commas, are compared")
      ->delimiter(',')
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  app.add_option(
         "--top-k", flags.top_k, "memories of each query, with commas, or all; default: 4,8,16,32,all; of WikiQA 12")
      ->delimiter(',')
      ->check(check_top_k);
  app.add_option("--position", flags.positions, "where memories stand, with commas")
      ->delimiter(',')
      ->check(CLI::IsMember({"zero", "contiguous"}))
      ->capture_default_str();
  app.add_option("--block-tokens", flags.block_tokens, "memories that each chosen one brings, itself among them")
      ->check(CLI::Range(1, most_block_tokens))
      ->capture_default_str();
  app.add_option(
         "--entropy",
         flags.entropy,
         "nats of the next token above which its position is computed again with --extra-k more memories; 0: none is")
      ->check(CLI::Range(0.0, 1000.0))
      ->capture_default_str();
  app.add_option("--extra-k", flags.extra_k, "of --entropy")->check(CLI::Range(1, most_top_k))->capture_default_str();
  std::vector<std::string> names;
  for (const Keeping& keeping : keepings()) {
    names.push_back(keeping.name);
  }
  app.add_option("--keep-as", flags.keeping, "how the texts become memories")
      ->check(CLI::IsMember(names))
      ->capture_default_str();
  app.add_option(
         "--documents",
         flags.documents,
         "search the memories of the so many texts most similar to the question; 0: of all")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_flag("--compare-keeping", flags.compare, "compare the ways of keeping texts");
  app.add_option("--lengths", flags.lengths, "tokens of texts whose first token is timed, with commas; 0: none")
      ->delimiter(',')
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  app.add_option("--timed", flags.timed, "questions that are timed")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--result", flags.result, "a file for the tables, besides the screen");
  app.add_option(
      "--wikiqa",
      flags.wikiqa,
      "instead: the counterfactual WikiQA's wikiqa-edited.json, scored as in arXiv 2406.02332");
  app.add_option("--limit", flags.limit, "of WikiQA: questions of each split; 0: all")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  app.add_flag("--quiet", flags.quiet, "no progress");
  add_load_flags(app, flags.load);
}

} // namespace

int memory_bench(std::vector<std::string> arguments) {
  BenchFlags flags;
  CLI::App app(
      "How well a model answers from memories (Extended Mind), how fast, and in how many bytes, beside the same text in the "
      "prompt; it needs nothing but the model",
      "mlx_parallm memory-bench");
  add_flags(app, flags);
  try {
    parse(app, std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  set_log("warning");
  flags.load.on_fetch = FetchBar(flags.model_path, stderr, !flags.quiet);
  if (flags.top_k.empty()) {
    flags.top_k =
        flags.wikiqa.empty() ? std::vector<std::string>{"4", "8", "16", "32", "all"} : std::vector<std::string>{"12"};
  }
  std::ofstream result;
  if (!flags.result.empty()) {
    result.open(flags.result);
    if (!result) {
      fail(Kind::invalid, "[memory-bench] can't write {}", flags.result);
    }
  }
  const auto questions = flags.wikiqa.empty() ? std::vector<WikiQuestion>() : read_wikiqa(flags.wikiqa, flags.limit);
  LanguageModel model(flags.model_path, flags.load);
  Report report;
  if (flags.wikiqa.empty()) {
    FactsReport(flags, model, report).run();
  } else {
    wikiqa(flags, model, questions, report);
  }
  result << report.text();
  if (!flags.result.empty() && !result.flush()) {
    fail(Kind::internal, "[memory-bench] writing {} failed", flags.result);
  }
  return 0;
}

} // namespace parallm
