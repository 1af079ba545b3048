// The programs' verbs. Each takes its own arguments (without the program's name
// and the verb) and gives the exit code.
#pragma once

#include <string>
#include <vector>

namespace parallm {

/** `mlx_parallm_serve`, `mlx_parallm serve`: the HTTP server. */
int serve(std::vector<std::string> arguments);

/** `mlx_parallm generate`: text from many prompts at once. */
int generate(std::vector<std::string> arguments);

/** `mlx_parallm convert`: a model to a folder in MLX's format. */
int convert(std::vector<std::string> arguments);

/** `mlx_parallm download`: a model of the Hugging Face hub into the cache. */
int download(std::vector<std::string> arguments);

/** `mlx_parallm memory`: documents of a store of memories. */
int memory(std::vector<std::string> arguments);

/** `mlx_parallm memory-bench`: memories beside the same text in the prompt. */
int memory_bench(std::vector<std::string> arguments);

} // namespace parallm
