#include "base/file.h"
#include "base/json.h"
#include "commands/commands.h"
#include "commands/flags.h"
#include "commands/progress.h"
#include "library/mlx_parallm.h"

#include <boost/json.hpp>
#include <spdlog/spdlog.h>

#include <unistd.h>

#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <sstream>

namespace parallm {

namespace {

namespace json = boost::json;

struct GenerateFlags {
  std::string model_path;
  LoadOptions load;
  GenerateOptions options;
  std::vector<std::string> prompts;
  std::string file;
  std::string input_format = "lines";
  std::string format = "text";
  std::string output;
  std::optional<uint64_t> seed;
  bool quiet = false;
};

void add_sampling_flags(CLI::App& app, Sampling& sampling) {
  for (const SamplingField& field : sampling_fields()) {
    std::string flag = "--" + std::string(field.name);
    std::replace(flag.begin(), flag.end(), '_', '-');
    std::visit(
        [&](auto member) { app.add_option(flag, sampling.*member, std::string(field.help))->capture_default_str(); },
        field.member);
  }
}

/** One prompt of a JSON line: a string, or an object with "prompt". */
std::string json_prompt(const std::string& line, size_t number) {
  boost::system::error_code error;
  json::value value = json::parse(line, error);
  const json::value* prompt = &value;
  if (!error && value.is_object()) {
    prompt = value.as_object().if_contains("prompt");
  }
  if (error || prompt == nullptr || !prompt->is_string()) {
    fail(
        Kind::invalid,
        "[generate] line {}: a JSON string or an object with a string "
        "\"prompt\" is wanted; got {}",
        number,
        line.substr(0, 80));
  }
  return std::string(prompt->as_string());
}

std::vector<std::string> read_prompts(const GenerateFlags& flags) {
  std::string all;
  if (flags.file.empty() || flags.file == "-") {
    if (!flags.prompts.empty()) {
      return flags.prompts;
    }
    std::ostringstream bytes;
    bytes << std::cin.rdbuf();
    all = std::move(bytes).str();
  } else {
    all = read_file(flags.file);
  }
  if (flags.input_format == "text") {
    return {all};
  }
  std::vector<std::string> prompts = flags.prompts;
  std::istringstream lines(all);
  std::string line;
  for (size_t number = 1; std::getline(lines, line); ++number) {
    if (!line.empty() && line.back() == '\r') {
      line.pop_back();
    }
    if (!line.empty()) {
      prompts.push_back(flags.input_format == "jsonl" ? json_prompt(line, number) : line);
    }
  }
  return prompts;
}

std::string_view name(Finish finish) {
  switch (finish) {
    case Finish::stop:
      return "stop";
    case Finish::length:
      return "length";
    case Finish::cancelled:
      return "cancelled";
    case Finish::error:
      return "error";
    case Finish::none:
      break;
  }
  return "none";
}

/** Writes each prompt's result as soon as those before it are written. */
class Writer {
 public:
  Writer(std::ostream& out, const GenerateFlags& flags, std::vector<std::string> prompts)
      : out_(out), flags_(flags), prompts_(std::move(prompts)) {}

  void done(size_t index, Generation generation) {
    waiting_.emplace(index, std::move(generation));
    for (auto next = waiting_.find(written_); next != waiting_.end(); next = waiting_.find(written_)) {
      write(next->second);
      waiting_.erase(next);
      ++written_;
    }
    out_.flush();
  }

 private:
  void write(const Generation& g) {
    if (flags_.format == "jsonl") {
      json::object line{
          {"index", written_},
          {"prompt", prompts_[written_]},
          {"text", g.text},
          {"finish_reason", name(g.finish)},
          {"prompt_tokens", g.prompt_tokens},
          {"cached_tokens", g.cached_tokens},
          {"completion_tokens", g.ids.size()}};
      if (g.error) {
        line["error"] = g.error->what();
      }
      out_ << json_text(line) << '\n';
    } else {
      if (prompts_.size() > 1) {
        out_ << "==> prompt " << written_ + 1 << '\n';
      }
      out_ << g.text << '\n';
    }
  }

  std::ostream& out_;
  const GenerateFlags& flags_;
  std::vector<std::string> prompts_;
  std::map<size_t, Generation> waiting_;
  size_t written_ = 0;
};

int run(const GenerateFlags& flags) {
  std::vector<std::string> prompts = read_prompts(flags);
  if (prompts.empty()) {
    fail(
        Kind::invalid,
        "[generate] no prompt: give one as an argument, in --file or on "
        "standard input");
  }
  std::ofstream file;
  if (!flags.output.empty()) {
    file.open(flags.output);
    if (!file) {
      fail(Kind::invalid, "[generate] can't write {}", flags.output);
    }
  }
  std::ostream& out = flags.output.empty() ? std::cout : file;

  LanguageModel model(flags.model_path, flags.load);
  // One prompt on its way to a terminal is shown as it comes.
  const bool streamed = prompts.size() == 1 && flags.format == "text";
  const bool shown = !flags.quiet && !(streamed && isatty(STDOUT_FILENO) == 1);
  Progress progress(prompts.size(), stderr, shown);
  Writer writer(out, flags, prompts);
  int failures = 0;
  auto pieces = batch_stream_generate_text(model, prompts, flags.options);
  while (auto piece = pieces.next()) {
    if (streamed) {
      out << piece->text << std::flush;
    }
    progress.tokens(piece->tokens);
    if (piece->done) {
      progress.clear();
      if (piece->done->error) {
        ++failures;
        fmt::print(stderr, "prompt {}: {}\n", piece->prompt + 1, piece->done->error->what());
      }
      if (streamed) {
        out << '\n' << std::flush;
      } else {
        writer.done(piece->prompt, std::move(*piece->done));
      }
      progress.prompt_done();
    }
  }
  progress.clear();
  if (!flags.quiet) {
    fmt::print(stderr, "{}\n", progress.summary());
  }
  if (!out) {
    fail(Kind::internal, "[generate] writing the output failed");
  }
  return failures == 0 ? 0 : 1;
}

} // namespace

int generate(std::vector<std::string> arguments) {
  GenerateFlags flags;
  CLI::App app(
      "Text from many prompts at once: as arguments, lines of a file, or "
      "lines of standard input",
      "mlx_parallm generate");
  app.add_option("--model-path", flags.model_path, "a model folder or a .gguf file")->required();
  app.add_option("prompts", flags.prompts, "prompts");
  app.add_option("--file", flags.file, "a file of prompts; - is standard input");
  app.add_option(
         "--input-format",
         flags.input_format,
         "lines: a prompt a line; jsonl: a JSON string or object with \"prompt\" a line; text: all of it is one prompt")
      ->check(CLI::IsMember({"lines", "jsonl", "text"}))
      ->capture_default_str();
  app.add_option("--format", flags.format, "of the output")
      ->check(CLI::IsMember({"text", "jsonl"}))
      ->capture_default_str();
  app.add_option("--output", flags.output, "a file; default: standard output");
  app.add_flag("--chat", flags.options.chat, "prompts are user messages, put into the model's chat template");
  app.add_option("--max-tokens", flags.options.max_tokens, "of each output")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str();
  app.add_option("--stop", flags.options.stop, "a string that ends the text (may be given again)")
      ->allow_extra_args(false);
  app.add_option("--seed", flags.seed, "the same seed gives the same texts");
  app.add_flag("--ignore-eos", flags.options.sampling.ignore_eos, "go on past the model's end token");
  app.add_flag("--quiet", flags.quiet, "no progress bar, no summary");
  add_sampling_flags(app, flags.options.sampling);
  add_load_flags(app, flags.load);
  try {
    parse(app, std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  // CLI11's own checks can't say a range that is open at one end.
  check_ranges(flags.options.sampling);
  flags.options.sampling.seed =
      flags.seed ? *flags.seed : (uint64_t{std::random_device{}()} << 32 | std::random_device{}());
  spdlog::set_level(spdlog::level::warn);
  return run(flags);
}

} // namespace parallm
