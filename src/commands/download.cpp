#include "base/log.h"
#include "commands/commands.h"
#include "commands/flags.h"
#include "commands/progress.h"

namespace parallm {

int download(std::vector<std::string> arguments) {
  std::string name;
  bool quiet = false;
  CLI::App app(
      "Fetches a model of the Hugging Face hub into the cache that Python's huggingface_hub uses too; prints its folder, or "
      "its GGUF file, as the last line. The environment's HF_TOKEN, HF_HOME, HF_HUB_CACHE, HF_ENDPOINT and HF_HUB_OFFLINE "
      "are honoured",
      "mlx_parallm download");
  app.add_option("model", name, "ORG/NAME, ORG/NAME@REVISION, ORG/NAME/FILE.gguf or ORG/NAME:TAG")->required();
  app.add_flag("--quiet", quiet, "no progress");
  try {
    parse(app, std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return app.exit(error);
  }
  set_log(quiet ? "warning" : "info");
  const std::string path = fetch_model(name, hub_environment(), FetchBar(name, stderr, !quiet));
  fmt::print("{}\n", path);
  return 0;
}

} // namespace parallm
