#include "commands/flags.h"

#include "kernels/cpu/ops.h"

#include <algorithm>
#include <cctype>
#include <map>

namespace parallm {

size_t parse_size(const std::string& flag, const std::string& text) {
  size_t end = 0;
  double number = 0;
  const bool digit = !text.empty() && std::isdigit(static_cast<unsigned char>(text[0]));
  if (digit) {
    number = std::stod(text, &end);
  }
  std::string unit = text.substr(end);
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return std::tolower(c); });
  static const std::map<std::string, double> units = {
      {"", 1},
      {"b", 1},
      {"k", 0x1p10},
      {"kb", 0x1p10},
      {"kib", 0x1p10},
      {"m", 0x1p20},
      {"mb", 0x1p20},
      {"mib", 0x1p20},
      {"g", 0x1p30},
      {"gb", 0x1p30},
      {"gib", 0x1p30},
      {"t", 0x1p40},
      {"tb", 0x1p40},
      {"tib", 0x1p40}};
  const auto found = units.find(unit);
  if (!digit || found == units.end() || number * found->second > 0x1p60) {
    throw CLI::ValidationError(flag, "a size is a number with KB, MB, GB or TB, such as 512MB; got " + text);
  }
  return static_cast<size_t>(number * found->second);
}

void add_load_flags(CLI::App& app, LoadOptions& options) {
  app.add_option(
         "--dtype",
         options.dtype,
         "activations' and KV cache's type; default: the checkpoint's "
         "(activations in float32 on a CPU)")
      ->check(CLI::IsMember({"float32", "float16", "bfloat16"}));
  app.add_option_function<std::string>(
      "--kv-cache-memory",
      [&](const std::string& text) { options.kv_cache_bytes = parse_size("--kv-cache-memory", text); },
      "the KV cache's capacity, such as 2GB; default: half of the free "
      "memory, and no more than max-batch-size contexts take");
  app.add_option(
         "--kv-bits",
         options.kv_bits,
         "8 or 4: keep keys and values in codes of so many bits, in groups of 64 along a head (memories: 8); default: 16 or 32 bits")
      ->check(CLI::IsMember({4, 8}));
  app.add_option("--max-batch-size", options.max_rows, "sequences that are computed at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max-context-length", options.max_context, "prompt and output in tokens; default: the model's own")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option(
         "--prefill-tokens",
         options.prefill_tokens,
         "prompt tokens in a step while no sequence is decoding; default: 256 on a CPU, 2048 on a GPU")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option(
         "--mixed-prefill-tokens",
         options.mixed_tokens,
         "prompt tokens in a step beside decoding sequences: what a long prompt may cost them; default: 128 on a CPU, 512 on a GPU")
      ->check(CLI::Range(1, 1 << 20));
  app.add_option("--prefix-cache", options.prefix_cache, "true|false: reuse the KV of equal beginnings")
      ->capture_default_str();
  app.add_option(
         "--speculative",
         options.speculative,
         "auto|ngram|none: guess tokens that followed the same words before, and check several in one step; no text changes "
         "by it. auto: on a CPU, unless a draft model guesses or the model is recurrent")
      ->check(CLI::IsMember({"auto", "ngram", "none"}))
      ->capture_default_str();
  app.add_option(
      "--draft-model",
      options.draft_model,
      "a small model with the same vocabulary, which guesses instead: a folder, a .gguf file or a name on the hub");
  app.add_option(
         "--num-draft-tokens",
         options.draft_tokens,
         "most guesses of a sequence in a step; default: 8, of a draft model 4")
      ->check(CLI::Range(1, 64));
  app.add_option(
      "--chat-template",
      options.chat_template,
      "a Jinja chat template instead of the model's own: a file, the template's text, or the name of another one of the "
      "model's, such as tool_use");
  app.add_option_function<int>(
         "--threads",
         [](const int& count) { cpu::set_threads(count); },
         "threads of the CPU kernels; default: the machine's cores")
      ->check(CLI::Range(1, 1024));
}

void parse(CLI::App& app, std::vector<std::string> arguments) {
  std::reverse(arguments.begin(), arguments.end());
  app.parse(std::move(arguments));
}

} // namespace parallm
