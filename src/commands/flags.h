// Flags that the commands share, and value forms that CLI11 lacks: sizes
// ("64MB", "2GiB"), "true|false".
#pragma once

#include "library/mlx_parallm.h"

#include <CLI/CLI.hpp>

#include <string>

namespace parallm {

/** Of --model-path. */
inline constexpr const char* model_path_help =
    "a model folder, a .gguf file, or a model on the Hugging Face hub: ORG/NAME, ORG/NAME@REVISION, ORG/NAME/FILE.gguf, "
    "ORG/NAME:TAG";

/** --dtype, --kv-cache-memory, --max-batch-size, --max-context-length,
 * --prefix-cache, --chat-template, --threads ... */
void add_load_flags(CLI::App& app, LoadOptions& options);

/** Bytes of "1073741824", "64MB", "2GiB"; powers of 1024 either way. Throws CLI::ValidationError, naming the flag. */
size_t parse_size(const std::string& flag, const std::string& text);

/** CLI11 reads the arguments in reverse order. */
void parse(CLI::App& app, std::vector<std::string> arguments);

} // namespace parallm
