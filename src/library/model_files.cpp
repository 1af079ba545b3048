#include "library/model_files.h"

#include "base/error.h"

#include <filesystem>

namespace parallm {

std::string model_files(const std::string& path, const OnFetch& on_fetch) {
  if (std::filesystem::exists(path)) {
    return path;
  }
  if (!is_hub_name(path)) {
    fail(
        Kind::not_found,
        "[load] there is no file or folder {}, and it is no name of a model on the Hugging Face hub: ORG/NAME, "
        "ORG/NAME@REVISION, ORG/NAME/FILE.gguf or ORG/NAME:TAG",
        path);
  }
  return fetch_model(path, hub_environment(), on_fetch);
}

} // namespace parallm
