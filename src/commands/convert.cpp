#include "library/convert.h"

#include "commands/commands.h"
#include "commands/flags.h"
#include "commands/progress.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <unistd.h>

#include <chrono>
#include <cstdio>

namespace parallm {

namespace {

/** On a terminal one line that is drawn over; in a log a line every tenth. */
class WrittenBytes {
 public:
  void operator()(const ConvertProgress& now) {
    const int percent = now.total == 0 ? 100 : static_cast<int>(now.written * 100 / now.total);
    const bool last = now.written == now.total;
    if (terminal_) {
      fmt::print(
          stderr,
          "\r[{:<40}] {:3}% of {:.2f} GB\x1b[K{}",
          std::string(percent * 40 / 100, '#'),
          percent,
          static_cast<double>(now.total) / 1e9,
          last ? "\n" : "");
      std::fflush(stderr);
    } else if (percent / 10 > said_) {
      said_ = percent / 10;
      fmt::print(stderr, "{}% of {:.2f} GB written\n", percent, static_cast<double>(now.total) / 1e9);
    }
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  int said_ = 0;
};

void add_flags(CLI::App& app, ConvertOptions& options) {
  app.add_option("--hf-path,--model,--model-path", options.model_path, model_path_help)->required();
  app.add_option("--mlx-path", options.mlx_path, "the folder to write; it must not exist, or be empty")
      ->capture_default_str();
  auto* quantize = app.add_flag("-q,--quantize", options.quantize, "quantize the layers that aren't quantized yet");
  app.add_option(
         "--q-group-size", options.group_size, "weights that share a scale; default: 64, mxfp4 and mxfp8 32, nvfp4 16")
      ->needs(quantize);
  app.add_option("--q-bits", options.bits, "of a weight; default: 4, mxfp8 8")->needs(quantize);
  app.add_option("--q-mode", options.mode, "the kind of quantization")
      ->check(CLI::IsMember(convert_modes()))
      ->capture_default_str()
      ->needs(quantize);
  app.add_option("--quant-predicate", options.recipe, "a recipe that gives some layers more bits, others fewer")
      ->check(CLI::IsMember(convert_recipes()))
      ->needs(quantize);
  app.add_option("--dtype", options.dtype, "of what isn't quantized; default: config.json's torch_dtype, else as it is")
      ->check(CLI::IsMember({"float16", "bfloat16", "float32"}));
  app.add_flag("-d,--dequantize", options.dequantize, "make quantized layers floats")->excludes(quantize);
}

} // namespace

int convert(std::vector<std::string> arguments) {
  ConvertOptions options;
  options.mlx_path = "mlx_model";
  CLI::App app(
      "A model folder or a .gguf file to a folder in MLX's format, quantized or not, that MLX programs open",
      "mlx_parallm convert");
  add_flags(app, options);
  try {
    parse(app, std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  spdlog::set_level(spdlog::level::warn);
  options.on_fetch = FetchBar(options.model_path, stderr, true);
  const auto start = std::chrono::steady_clock::now();
  const auto made = convert(options, WrittenBytes());
  const auto seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (made.widened > 0) {
    fmt::print(
        stderr,
        "{} layers are quantized in a way that MLX has not: {}\n",
        made.widened,
        options.quantize ? "they were quantized anew" : "they are floats now; --quantize makes them small again");
  }
  fmt::print(
      stderr,
      "{}: {:.2f} GB, {:.3f} bits per weight, in {:.1f} s\n",
      options.mlx_path,
      static_cast<double>(made.bytes) / 1e9,
      made.parameters == 0 ? 0.0 : 8.0 * static_cast<double>(made.bytes) / static_cast<double>(made.parameters),
      seconds);
  return 0;
}

} // namespace parallm
