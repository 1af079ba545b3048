// mlx_parallm: picks the verb. mlx_parallm_serve is the same program with
// `serve` built in.
#include "base/error.h"
#include "commands/commands.h"

#include <fmt/core.h>

#include <cstdio>
#include <exception>

namespace {

#ifdef PARALLM_SERVE
constexpr bool only_serve = true;
#else
constexpr bool only_serve = false;
#endif

constexpr const char* usage =
    "usage: mlx_parallm VERB [flags]\n\n"
    "  serve         the HTTP server (also: mlx_parallm_serve)\n"
    "  generate      text from many prompts at once\n"
    "  convert       a model to a folder in MLX's format, quantized or not\n"
    "  download      a model of the Hugging Face hub into the cache\n"
    "  memory        documents that requests attend to: add, list, rm, query\n"
    "  memory-bench  what memories are worth with a model, and what they cost\n\n"
    "`mlx_parallm VERB --help` lists a verb's flags.\n";

int run(std::vector<std::string> arguments) {
  if (only_serve) {
    return parallm::serve(std::move(arguments));
  }
  std::string verb = arguments.empty() ? "" : arguments.front();
  if (!arguments.empty()) {
    arguments.erase(arguments.begin());
  }
  if (verb == "serve") {
    return parallm::serve(std::move(arguments));
  }
  if (verb == "generate") {
    return parallm::generate(std::move(arguments));
  }
  if (verb == "convert") {
    return parallm::convert(std::move(arguments));
  }
  if (verb == "download") {
    return parallm::download(std::move(arguments));
  }
  if (verb == "memory") {
    return parallm::memory(std::move(arguments));
  }
  if (verb == "memory-bench") {
    return parallm::memory_bench(std::move(arguments));
  }
  if (verb == "--version") {
    fmt::print("{}\n", PARALLM_VERSION);
    return 0;
  }
  const bool asked = verb == "--help" || verb == "-h" || verb == "help";
  fmt::print(asked ? stdout : stderr, "{}", usage);
  return asked ? 0 : 2;
}

} // namespace

int main(int argc, char** argv) {
  try {
    return run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    fmt::print(stderr, "error: {}\n", error.what());
    return 1;
  }
}
